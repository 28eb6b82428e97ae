"""The page itself: scores with their protocol, pictures, curves, recipe, and how to make it again."""

import base64
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..config.recipe import Recipe, changed_keys
from ..runfolder.history import RunRecord
from ..runtime.files import write_text
from .charts import line_chart
from .score_labels import UNITS, score_labels, solver_note

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
    "controls": "One noise flows to many images, each under the control that an image's code decides.",
    "pixels-trajectory": "The flow of pixels, from noise to images.",
    "noises": "What the code keeps, and what the noise adds.",
    "labels": "Samples of each class.",
}
CURVES = (
    ("Nats an image", {"train_nats": "training", "validation_nats": "validation"}),
    ("Loss", {"loss": "loss"}),
    ("Bits per dimension of held-out images, a bound", {"validation_bits_per_dim": "validation"}),
    ("Cost of the code, nats", {"kl_nats": "training", "validation_kl_nats": "validation"}),
    (
        "Flow-matching loss",
        # And the names of earlier versions.
        {
            **{"flow_matching": "training", "validation_flow_matching": "validation"},
            **{"matching": "training ", "validation_matching": "validation "},
        },
    ),
    ("Reflow: error of few evaluations", {"validation_mse_of_one": "one", "validation_mse_of_two": "two"}),
    ("Norm of the gradient", {"gradient_norm": "norm"}),
    ("Learning rate", {"lr": "rate", "rate": "rate "}),
    ("Error of the training solver, nats", {"solver_gap_nats": "gap"}),
    ("Evaluations of the field", {"nfe": "NFE"}),
    ("Images a second", {"images_per_second": "images"}),
)


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
    place = resources.files(__package__)
    template, style = (place.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    write_text(
        path,
        page.render(
            name=record.recipe.name,
            style=style,
            folder=record.folder,
            facts=_facts(record),
            notices=record.notices,
            **_scores(record),
            pictures=list(_pictures(record.pictures)),
            charts=list(_charts(record.rows)),
            recipe=_recipe(record.recipe),
            commands=_commands(record),
            environment=_environment(record.environment),
        )
        + "\n",
    )
    return path


def _facts(record: RunRecord) -> list[str]:
    recipe, environment, seconds = record.recipe, record.environment, record.seconds
    facts = [f"{recipe.data.name} images", f"{recipe.latent.dim} latent dimensions", f"loop {recipe.flow.loop}"]
    facts += [f"prior {recipe.prior.kind}", *(["refined"] * (recipe.observation.kind == "refined")), record.progress]
    if record.rows:
        facts.append(
            f"{record.epochs} epochs in " + (f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min")
        )
    if environment:
        facts.append(f"ncode_gen {environment.get('ncode_gen')} on {environment.get('device')}")
    return facts


def _scores(record: RunRecord) -> dict[str, Any]:
    """Return scores as rows of a table, with how they were made."""
    if not record.scores:
        return {"scores": [], "protocol": "", "warnings": []}
    protocol, labels = record.protocol, score_labels(record.protocol)
    rows = [
        (
            labels.get(key, key) + (f", {UNITS[key]}" if key in UNITS else ""),
            f"{score['value']:.4g}",
            f"{score['low']:.4g} to {score['high']:.4g}",
        )
        for key, score in record.scores.items()
    ]
    words = (
        f"{protocol['test_images']} test images of {protocol['data']}, {protocol['likelihood']}, "
        f"seed {protocol['seed']}, prior {protocol['prior']}; intervals: {protocol['interval']}."
    )
    solver = protocol.get("solver")
    if solver and solver["refined"] != "none":
        words += f" Likelihoods with {solver_note(solver)}."
    return {"scores": rows, "protocol": words, "warnings": protocol["warnings"]}


def _pictures(files: Iterable[Path]) -> Iterable[tuple[str, str, str]]:
    """Yield caption, MIME type and content in base64 of what a browser shows."""
    order = list(CAPTIONS)
    for file in sorted(files, key=lambda file: ([*order, file.stem].index(file.stem), file.name)):
        kind, begin = KINDS.get(file.suffix, ("", b""))
        content = file.read_bytes()
        if kind and content.startswith(begin):
            yield CAPTIONS.get(file.stem, file.stem), kind, base64.b64encode(content).decode()


def _charts(rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for title, names in CURVES:
        series = {
            label: [(float(row["epoch"]), float(row[key])) for row in rows if key in row]
            for key, label in names.items()
        }
        if len({y for points in series.values() for _, y in points}) > 1:  # a constant needs no chart
            chart = line_chart(title, series, "epoch")
            if chart is not None:
                yield chart


def _recipe(recipe: Recipe) -> dict[str, list[tuple[str, bool]]]:
    """Return by section its keys as text, each with whether it differs from the default recipe."""
    values = recipe.to_dict()
    changed, groups = changed_keys(Recipe().to_dict(), values), dict[str, list[tuple[str, bool]]]()
    for key, value in values.items():
        for name, inner in value.items() if isinstance(value, dict) else [(key, value)]:
            section, full = (key, f"{key}.{name}") if isinstance(value, dict) else ("model", key)
            groups.setdefault(section, []).append((f"{name} = {inner!r}", full in changed))
    return groups


def _commands(record: RunRecord) -> list[str]:
    """Return the commands that made the run, as they are typed; `sys.argv` names the module's file."""
    environment = record.environment
    entries = [environment, *environment.get("resumed", []), record.protocol.get("environment", {})]
    commands = [str(entry["command"]).partition(" ") for entry in entries if entry.get("command")]
    return [f"python -m ncode_gen.{program.removesuffix('.py')} {rest}".strip() for program, _, rest in commands]


def _environment(environment: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    commit = f", commit {environment['commit']}" if environment.get("commit") else ""
    return [
        f"ncode_gen {environment.get('ncode_gen')}{commit}",
        f"Python {environment.get('python')}, {packages}",
        f"{environment.get('device')}, {environment.get('threads')} threads, {environment.get('system')}",
        f"seed {environment.get('seed')}",
    ]
