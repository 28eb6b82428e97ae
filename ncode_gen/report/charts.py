"""Line charts as inline SVG, which take their colours from the page, and so follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["line_chart", "round_ticks"]

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
SETTLED = 0.1
Points = Sequence[tuple[float, float]]


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers that span an interval, about so many.

    >>> round_ticks(81.3, 95.2)
    [80.0, 85.0, 90.0, 95.0, 100.0]
    """
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * i, 12) for i in range(first, last + 1)]


def line_chart(title: str, series: Mapping[str, Points], across: str) -> str:
    """Return a chart as SVG.

    Args:
        title: what is drawn, with its unit.
        series: points (x, y) by label; those that are not finite are left out, and so are those far above or below the
            rest in the first tenth.
        across: what the horizontal axis is.

    Returns:
        SVG text; empty, if there is nothing to draw.
    """
    lines = {
        label: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])] for label, points in series.items()
    }
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    x_low = min(xs)
    x_high = max(*xs, x_low + 1e-9)
    # Where training begins, numbers are so large that nothing else could be told apart; they are cut off.
    begun = x_low + SETTLED * (x_high - x_low)
    ys = [y for points in lines.values() for x, y in points if x >= begun or len(points) == 1]
    x_ticks, y_ticks = round_ticks(min(xs), max(xs)), round_ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by {escape(across)}">']
    inside = f'x="{LEFT}" y="{TOP - 2}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM + 4}"'
    parts.append(f'<clipPath id="inside"><rect {inside}/></clipPath>')
    for y in y_ticks:
        _, at = place(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{y:.6g}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            at, _ = place(x, y_low)
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x:.6g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    for number, (label, points) in enumerate(lines.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline clip-path="url(#inside)" class="series-{number}" points="{path}"/>')
        for x, y in points:
            if not y_low <= y <= y_high:
                continue
            at_x, at_y = place(x, y)
            told = f"{label}: {y:.6g} at {across} {x:.6g}"
            parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"><title>{escape(told)}</title></circle>')
    parts.append("</svg>")
    keys = ""
    if len(lines) > 1:
        keys = "".join(f'<span class="key-{number}">{escape(label)}</span>' for number, label in enumerate(lines))
    return f"<figure><figcaption>{escape(title)} {keys}</figcaption>{''.join(parts)}</figure>"
