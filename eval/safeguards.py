"""What keeps a flow from learning its solver's error: `python eval/safeguards.py`.

A coarse solver makes an error, and a likelihood that is found with it can be raised by making the error larger instead
of the model better. Here the digits' ncode-open is trained with a controlled flow as prior, both flows with few steps
of Runge-Kutta 4, and with one safeguard or another: random time grids, the exact log-determinant of the discrete step
map (slow, and so the last of each seed), the kinetic penalty, or more steps. What is scored is the likelihood of the
test images with a refined solver, and how far the training solver would have overestimated it.

A finished cell is not run again. Writes eval/results/safeguards.{json,md}; runs go to runs/safeguards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cells import told
from intervals import interval

from ncode_gen.data.sets import load_data
from ncode_gen.metrics import score_likelihood
from ncode_gen.runfolder.run import load_recipe, load_run
from ncode_gen.runtime.files import write_json, write_text

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "eval" / "results" / "safeguards.json"
SEEDS, PARTICLES, STEPS = 3, 32, 2
COMMON = ("--prior.kind", "flow", "--prior.joint", "--prior.layers", "1", "--prior.hidden", "128")
EVEN, RANDOM = ("--flow.grid", "even"), ("--flow.grid", "random")

# Name -> steps of both flows, and what else the recipe says.
SAFEGUARDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "none: even grid": (STEPS, EVEN),
    "random grid": (STEPS, RANDOM),
    "kinetic penalty 0.01": (STEPS, (*EVEN, "--objective.kinetic", "0.01")),
    "kinetic penalty 0.1": (STEPS, (*EVEN, "--objective.kinetic", "0.1")),
    "three times the steps, even grid": (3 * STEPS, EVEN),
    "three times the steps, random grid": (3 * STEPS, RANDOM),
    "log-determinant of the steps": (STEPS, (*EVEN, "--flow.log_det_by", "steps")),
}


def run(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train and score one cell."""
    steps, more = SAFEGUARDS[name]
    folder = ROOT / "runs" / "safeguards" / f"{name.replace(' ', '-')}-{seed}-{epochs}"
    if not (folder / "weights.safetensors").exists():
        begin = [str(ROOT / "models" / "digits" / "ncode-open.toml"), "--out", str(folder), "--seed", str(seed)]
        begin += [*COMMON, "--flow.steps", str(steps), "--prior.steps", str(steps), *more]
        begin += ["--training.epochs", str(epochs), "--quiet"]
        arguments = ["--resume", str(folder), "--quiet"] if (folder / "state").exists() else begin
        subprocess.run([sys.executable, "-m", "ncode_gen.train", *arguments], cwd=ROOT, check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    cell = {"seconds": sum(row["seconds"] for row in rows), "torch": torch.__version__}
    test = load_data(load_recipe(folder).data).test
    try:
        found = score_likelihood(load_run(folder), test, PARTICLES, quiet=True)
    except ValueError as error:  # too stiff to score: that is a result
        return cell | {"lost": str(error)}
    gaps = {"nll_gap": found.nll_gap, "elbo_gap": found.elbo_gap, "solver": found.solver}
    return cell | {"nll": found.nll.value, "elbo": found.elbo.value} | gaps


def read() -> dict[str, Any]:
    """Return the cells that are filled."""
    cells: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    return cells


def table(cells: dict[str, Any], epochs: int) -> str:
    """Return the cells as Markdown."""
    lines = [
        "# What keeps a flow from learning its solver's error",
        "",
        f"digits, ncode-open with an N-CODE flow as prior, {epochs} epochs, RK4 x {STEPS} in training where nothing "
        f"else is said; mean and 95 % interval over seeds. NLL (K = {PARTICLES}) and -ELBO of the test images in "
        "nats with a solver refined until both stand within 0.05 nats; overestimated: how much lower NLL and -ELBO are "
        "with the solver of training. A run whose value stands with no solver of 256 steps is lost. "
        "Command: `python eval/safeguards.py`.",
        "",
        "| safeguard | seeds | lost | NLL | -ELBO | NLL overestimated by | -ELBO overestimated by | training, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in SAFEGUARDS:
        rows = [cells[key] for seed in range(SEEDS) if (key := key_of(name, seed, epochs)) in cells]
        if not rows:
            continue
        scored = [row | {"nelbo": -row["elbo"]} for row in rows if "nll" in row]
        shown = [str(len(rows)), str(len(rows) - len(scored))]
        for key, digits in (("nll", 2), ("nelbo", 2), ("nll_gap", 3), ("elbo_gap", 3)):
            if len(scored) > 1:
                mean, half = interval(scored, key)
                shown.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
            else:
                shown.append(f"{scored[0][key]:.{digits}f}" if scored else "-")
        shown.append(f"{sum(row['seconds'] for row in rows) / len(rows):.0f}")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def key_of(name: str, seed: int, epochs: int) -> str:
    """Return the key of a cell."""
    return f"{name}/{seed}/{epochs}"


def main() -> None:
    """Fill the table, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(SEEDS)))
    options = parser.parse_args()
    missing = {
        f"{name}, seed {seed}": (name, seed)
        for seed in options.seeds
        for name in SAFEGUARDS
        if key_of(name, seed, options.epochs) not in read()
    }
    for name, seed in told({} if options.table else missing):
        found = run(name, seed, options.epochs)
        write_json(RESULT, {**read(), key_of(name, seed, options.epochs): found})
        write_text(RESULT.with_suffix(".md"), table(read(), options.epochs))
    text = table(read(), options.epochs)
    write_text(RESULT.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
