"""The studies' tables in the short form that README shows; the long ones are in eval/results/."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from intervals import interval

__all__ = ["summaries"]

Cells = dict[str, Any]
MAPS = ("mirror 1-D", "mirror 2-D", "mirror 8-D", "point reflection 2-D", "point reflection 8-D")
FLOWS = ("NODE", "ANODE", "gamma alone", "N-CODE open", "N-CODE closed, dynamic", "N-CODE closed, algebraic")
CLASSIFIERS = ("NODE", "ANODE", "residual net", "gamma alone", "N-CODE open", "N-CODE closed")


def _expressivity(cells: Cells) -> list[str]:
    def seeds(task: str, model: str, key: str) -> list[float]:
        rows = [row for name, row in cells.items() if name.startswith(f"{task}/{model}/")]
        return [row[key] for row in rows if key in row]

    lines = [
        "**Reflections and annuli** (`python eval/expressivity.py`; 2,000 parameters each, ten seeds): median mean "
        "square error on held-out points, and seeds below 1e-3; for the annuli the median accuracy of a linear "
        "read-out, seeds of at least 99.5 %, and mean evaluations of a point.",
        "",
        f"| model | {' | '.join(MAPS)} | annuli |",
        "|---|" + "---:|" * (len(MAPS) + 1),
    ]
    for model in FLOWS:
        shown = []
        for task in MAPS:
            errors = seeds(task, model, "mse")
            shown.append(f"{median(errors):.1e}, {sum(error < 1e-3 for error in errors)}")
        found, nfe = seeds("annuli 2-D", model, "accuracy"), seeds("annuli 2-D", model, "nfe")
        good = sum(accuracy >= 0.995 for accuracy in found)
        cost = f", NFE {mean(nfe):.0f}" if nfe else ""
        lines.append(f"| {model} | {' | '.join(shown)} | {median(found):.2%}, {good}{cost} |")
    return lines


def _classification(cells: Cells) -> list[str]:
    sets = ("digits", "mnist", "fashion-mnist")
    lines = [
        "**Supervised learning** (`python eval/classification.py`; linear projection to 8 dimensions, model, linear "
        "read-out; equal parameters, five seeds): test accuracy in %, 95 % interval of the mean.",
        "",
        f"| model | {' | '.join(sets)} |",
        "|---|---:|---:|---:|",
    ]
    for model in CLASSIFIERS:
        found = [interval(cells[f"{data}/{model}"], "accuracy") for data in sets]
        lines.append(f"| {model} | " + " | ".join(f"{100 * m:.2f} ± {100 * half:.2f}" for m, half in found) + " |")
    return lines


def _density(cells: Cells) -> list[str]:
    from density import DENSITIES, MODELS

    lines = [
        "**Densities in the plane** (`python eval/density.py`; 2,000 parameters each, three seeds): exact negative "
        "log-likelihood in nats, refined solver. With the label as condition the numbers are conditional.",
        "",
        f"| model | label | {' | '.join(DENSITIES)} |",
        "|---|---|" + "---:|" * len(DENSITIES),
    ]
    for model, (labelled, _) in MODELS.items():
        found = [interval(cells[f"{density}/{model}"], "nll") for density in DENSITIES]
        shown = " | ".join(f"{m:.3f} ± {half:.3f}" for m, half in found)
        lines.append(f"| {model} | {'yes' if labelled else 'no'} | {shown} |")
    return lines


def _speed(found: dict[str, Any]) -> list[str]:
    names = ("ncode_gen", "compiled loop", "torchdiffeq rk4", "torchdiffeq dopri5", "odeint_adjoint rk4")
    lines = [
        f"**Speed** (`python eval/speed.py`; {found['threads']} CPU threads, batch 256, forward and backward, "
        "milliseconds): the field d -> h -> d with all weights each sample's own.",
        "",
        f"| d, h, steps | {' | '.join(names)} | times faster than rk4 | than the adjoint |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for row in found["rows"]:
        if row["batch"] == 256:
            spent = row["both"]
            ratios = [spent[name] / spent["ncode_gen"] for name in ("torchdiffeq rk4", "odeint_adjoint rk4")]
            lines.append(
                f"| {row['size']} | {' | '.join(f'{spent[name]:.2f}' for name in names)} | {ratios[0]:.1f} | "
                f"{ratios[1]:.1f} |"
            )
    return lines


def _sampling(found: dict[str, Any]) -> list[str]:
    lines = [
        f"**Sampling** (`python eval/sampling.py`; {found['images']:,} images, {found['threads']} CPU threads, medians "
        "in seconds): `python -m ncode_gen.sample` without the time of its imports.",
        "",
        "| model | command | latents | pictures | with what the refiner adds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, took in found["seconds"].items():
        refined = f"{took['images']:.1f}" if "images, centred" in took else "-"
        lines.append(
            f"| {name} | {took['command'] - took['imports']:.1f} | {took['latents']:.1f} | {took['pictures']:.1f} | "
            f"{refined} |"
        )
    return lines


def summaries(results: Path) -> list[str]:
    """Return one Markdown text for each study whose results are there."""
    makers = {
        "expressivity": _expressivity,
        "classification": _classification,
        "density": _density,
        "speed": _speed,
        "sampling": _sampling,
    }
    return [
        "\n".join(make(json.loads((results / f"{name}.json").read_text())))
        for name, make in makers.items()
        if (results / f"{name}.json").exists()
    ]
