"""The page itself: scores with their protocol, pictures, curves, recipe, and how to make it again."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..config.recipe import Recipe, changed_keys
from ..runfolder.history import RunRecord
from ..runtime.files import write_text
from .charts import line_chart
from .score_labels import UNITS, score_labels, solver_note

__all__ = ["write_report"]

# What a browser shows, by its first bytes: a file that only bears the name is left out.
KINDS = {".png": ("image/png", b"\x89PNG"), ".gif": ("image/gif", b"GIF8"), ".svg": ("image/svg+xml", b"<")}
CAPTIONS = {
    "samples": "Samples from the prior.",
    "reconstructions": "Held-out images and their reconstructions.",
    "interpolations": "Straight lines between the latents of held-out images.",
    "trajectories": "Each image's latent flows under its own vector field.",
    "filmstrip": "The latent along t, decoded.",
    "animation": "The latents of held-out images moving from t = 0 to t = 1, decoded.",
    "decoder-trajectory": "How images arise along the decoder's flow.",
    "refiner-trajectory": "The refiner's flow, from decoder means with noise to images.",
}
CURVES = (
    ("Nats an image", {"train_nats": "training", "validation_nats": "validation"}),
    ("Loss", {"loss": "loss"}),
    (
        "Refiner: flow-matching loss",
        # And the names of earlier versions.
        {
            **{"flow_matching": "training", "validation_flow_matching": "validation"},
            **{"matching": "training ", "validation_matching": "validation "},
        },
    ),
    ("Norm of the gradient", {"gradient_norm": "norm"}),
    ("Learning rate", {"lr": "rate", "rate": "rate "}),
    ("Error of the training solver, nats", {"solver_gap_nats": "gap"}),
    ("Evaluations of the field", {"nfe": "NFE"}),
    ("Images a second", {"images_per_second": "images"}),
)
# Nothing may be fetched from anywhere, whatever a run folder holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(record: RunRecord, path: Path) -> Path:
    """Write one HTML page that needs no network and no other file.

    Args:
        record: the run.
        path: file of the page.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written, or a picture cannot be read.
    """
    name = escape(record.recipe.name)
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    sections = {
        "Scores": _scores(record),
        "Pictures": _pictures(record.pictures),
        "Curves": _curves(record.rows),
        "Recipe": _recipe(record.recipe),
        "Make it again": _again(record),
    }
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in sections)
    bodies = "".join(f'<h2 id="{_anchor(title)}">{title}</h2>{body}' for title, body in sections.items())
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in record.notices)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><header><h1>{name}</h1>"
        f'<p class="facts">{escape(_facts(record))}</p><nav>{links}</nav>{notices}</header><main>{bodies}</main>'
        "</body></html>\n"
    )
    write_text(path, page)
    return path


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _facts(record: RunRecord) -> str:
    recipe, environment = record.recipe, record.environment
    facts = [
        f"{recipe.data.name} images",
        f"{recipe.latent.dim} latent dimensions",
        f"loop {recipe.flow.loop}",
        f"prior {recipe.prior.kind}",
        *(["refined"] if recipe.observation.kind == "refined" else []),
        record.progress,
    ]
    if record.rows:
        facts.append(f"{record.epochs} epochs in {_duration(record.seconds)}")
    if environment:
        facts.append(f"ncode_gen {environment.get('ncode_gen')} on {environment.get('device')}")
    return " · ".join(facts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _table(rows: Iterable[Iterable[str]], head: Iterable[str], caption: str = "") -> str:
    """Return a table whose cells are escaped: names, then numbers."""
    kinds = ("", " class=number", " class=number")
    header = "".join(f"<th{kind}>{escape(cell)}</th>" for cell, kind in zip(head, kinds, strict=False))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=False)) + "</tr>"
        for row in rows
    )
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{below}<thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table></div>'


def _scores(record: RunRecord) -> str:
    if not record.scores:
        return f"<p>Not scored yet.</p><pre>python -m ncode_gen.evaluate {escape(str(record.folder))}</pre>"
    protocol = record.protocol
    labels = score_labels(protocol)
    rows = [
        (
            labels.get(key, key) + (f", {UNITS[key]}" if key in UNITS else ""),
            f"{score['value']:.4g}",
            f"{score['low']:.4g} to {score['high']:.4g}",
        )
        for key, score in record.scores.items()
    ]
    told = [
        f"{protocol['test_images']} test images of {protocol['data']}, {protocol['likelihood']}, "
        f"seed {protocol['seed']}, prior {protocol['prior']}; intervals: {protocol['interval']}."
    ]
    solver = protocol.get("solver")
    if solver and "nll_gap_nats" in solver and solver["refined"] != "none":
        told.append(f"Likelihoods with {solver_note(solver)}.")
    warnings = "".join(f'<p class="notice">{escape(str(warning))}</p>' for warning in protocol["warnings"])
    return _table(rows, ("score", "value", "95 % interval"), " ".join(told)) + warnings


def _pictures(files: Iterable[Path]) -> str:
    order = list(CAPTIONS)
    known = sorted(files, key=lambda file: (order.index(file.stem) if file.stem in order else len(order), file.name))
    parts = []
    for file in known:
        kind, begin = KINDS.get(file.suffix, ("", b""))
        content = file.read_bytes()
        if not kind or not content.startswith(begin):
            continue
        caption = escape(CAPTIONS.get(file.stem, file.stem))
        moving = ' class="moving"' if file.suffix == ".gif" else ""
        data = base64.b64encode(content).decode()
        parts.append(
            f'<figure><img{moving} alt="{caption}" src="data:{kind};base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(parts)}</div>' if parts else ""


def _curves(rows: list[dict[str, Any]]) -> str:
    charts = []
    for title, names in CURVES:
        series = {
            label: [(float(row["epoch"]), float(row[key])) for row in rows if key in row]
            for key, label in names.items()
        }
        if len({y for points in series.values() for _, y in points}) > 1:  # a constant needs no chart
            charts.append(line_chart(title, series, "epoch"))
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _recipe(recipe: Recipe) -> str:
    values = tomllib.loads(recipe.to_toml())
    unusual = changed_keys(Recipe().to_dict(), values)
    groups: dict[str, list[str]] = {}
    for key, value in values.items():
        for name, inner in value.items() if isinstance(value, dict) else [(key, value)]:
            section, full = (key, f"{key}.{name}") if isinstance(value, dict) else ("model", key)
            shown = escape(f"{name} = {inner!r}")
            groups.setdefault(section, []).append(f"<b>{shown}</b>" if full in unusual else shown)
    parts = [f"<div><strong>{section}</strong><br>{'<br>'.join(lines)}</div>" for section, lines in groups.items()]
    note = '<p class="facts">In colour: what differs from the default recipe.</p>'
    return f'{note}<div class="recipe">{"".join(parts)}</div>'


def _again(record: RunRecord) -> str:
    environment = record.environment
    if not environment:
        return ""
    commands = [_command(str(entry.get("command", ""))) for entry in (environment, *environment.get("resumed", []))]
    scored = record.protocol.get("environment", {}).get("command")
    if scored:
        commands.append(_command(str(scored)))
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    facts = [
        f"ncode_gen {environment.get('ncode_gen')}"
        + f", commit {environment.get('commit')}" * bool(environment.get("commit")),
        f"Python {environment.get('python')}, {packages}",
        f"{environment.get('device')}, {environment.get('threads')} threads, {environment.get('system')}",
        f"seed {environment.get('seed')}",
    ]
    recipe = f"or from the recipe of this run:\n\npython -m ncode_gen.train {record.folder / 'recipe.toml'} --out NEW"
    listed = "<br>".join(escape(fact) for fact in facts)
    return f"<pre>{escape(chr(10).join(commands))}\n\n{escape(recipe)}</pre><p class=facts>{listed}</p>"


def _command(told: str) -> str:
    """Return a command as it is typed; `sys.argv` names the module's file."""
    program, _, rest = told.partition(" ")
    return f"python -m ncode_gen.{program.removesuffix('.py')} {rest}".strip()
