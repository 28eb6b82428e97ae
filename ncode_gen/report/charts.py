"""Line charts as the page draws them, in inline SVG: it has the colours of the page, and so follows light and dark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 12, HEIGHT - 34
SETTLED = 0.1


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
    return [round(step * i, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]], across: str) -> dict[str, Any] | None:
    """Return a chart's ticks, lines and points in the coordinates of its SVG; None, if there is nothing to draw.

    Args:
        title: what it shows, with its unit.
        series: points (x, y) by label; those that are not finite are left out, and so are those far above or below the
            rest in the first tenth.
        across: what the horizontal axis is.
    """
    lines = {label: [point for point in points if all(map(math.isfinite, point))] for label, points in series.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return None
    xs = [x for points in lines.values() for x, _ in points]
    x_low, x_high = min(xs), max(*xs, min(xs) + 1e-9)
    # Where training begins, numbers are so large that nothing else could be seen; they are cut off.
    begun = x_low + SETTLED * (x_high - x_low)
    ys = [y for points in lines.values() for x, y in points if x >= begun or len(points) == 1]
    y_ticks = round_ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def along(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)

    def up(y: float) -> float:
        return round(BOTTOM - (y - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    curves = [
        {
            "label": label,
            "points": [
                (along(x), up(y), f"{label}: {y:.6g} at {across} {x:.6g}" if y_low <= y <= y_high else "")
                for x, y in points
            ],
        }
        for label, points in lines.items()
    ]
    return {
        **{"title": title, "across": across, "width": WIDTH, "height": HEIGHT},
        **{"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "lines": curves},
        "x_ticks": [(along(x), f"{x:.6g}") for x in round_ticks(min(xs), max(xs)) if x_low <= x <= x_high],
        "y_ticks": [(up(y), f"{y:.6g}") for y in y_ticks],
    }
