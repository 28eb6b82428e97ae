"""Copy a finished and scored run into checkpoints/, with a card: `python eval/ship.py runs/mnist-ncode-open`.

The line of the recipe's header that says what was measured is written too. `--half` rounds the weights to float16, for
a file of half the size, and scores and draws the rounded model anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

from headline import devices_of
from publish import write_header

from ncode_gen.errors import UserError
from ncode_gen.files import write_text
from ncode_gen.recipe import Recipe
from ncode_gen.run import load_recipe, load_run, save_weights
from ncode_gen.score_labels import UNITS

ROOT = Path(__file__).parent.parent
LARGEST = 8 * 2**20
FILES = ("recipe.toml", "weights.safetensors", "evaluation.json", "environment.json", "metrics.jsonl")


def card(run: Path, recipe: Recipe, *, half: bool) -> str:
    """Return the card of a run, its weights rounded or not, as Markdown."""
    result = json.loads((run / "evaluation.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    protocol, solver = result["protocol"], result["protocol"].get("solver", {})
    model = recipe.name.removeprefix(f"{recipe.data.name}-")
    seconds = sum(row["seconds"] for row in rows)
    where = f"{environment['threads']} threads, {devices_of(environment)}"
    lines = [
        f"# {recipe.name}",
        "",
        "| | |",
        "|---|---|",
        f"| data | {recipe.data.name}; scored on {protocol['test_images']} test images, {protocol['likelihood']} |",
        f"| recipe | [recipe.toml](recipe.toml), the same as models/{recipe.data.name}/ |",
        f"| seed | {recipe.seed} |",
        f"| command | `python -m ncode_gen.train models/{recipe.data.name}/{model}.toml` |",
        f"| time | {seconds:.0f} s for {len(rows)} epochs, {where} |",
        f"| versions | ncode_gen {environment['ncode_gen']}, torch {environment['packages']['torch']} |",
        f"| date | {datetime.date.today().isoformat()} |",
    ]
    if solver:
        lines.append(
            f"| likelihoods | K = {protocol['particles']}, {solver['refined']}, which moved by "
            f"{solver['moved_nats']:.3f} nats at the last doubling; {solver['coarse']} would flatter "
            f"the NLL by {solver['nll_gap_nats']:.3f} |"
        )
    if half:
        lines.append("| weights | rounded to float16; scored so |")
    features = f"{protocol['features']['name']}, n={protocol['n']}, test"
    lines += ["", f"Features: {features}. Intervals: {protocol['interval']}.", "", "| score | value | 95 % interval |"]
    lines.append("|---|---:|---:|")
    for key, score in result["scores"].items():
        unit = f" ({UNITS[key]})" if key in UNITS else ""
        lines.append(f"| {key}{unit} | {score['value']:.4g} | {score['low']:.4g} to {score['high']:.4g} |")
    return "\n".join(lines) + "\n"


def public_recipe(recipe: Recipe) -> Path:
    """Return the file of a run's recipe in models/; raise a `UserError`, if it differs, the images' place apart."""
    model = recipe.name.removeprefix(f"{recipe.data.name}-")
    path = ROOT / "models" / recipe.data.name / f"{model}.toml"
    public = Recipe.load(path)
    if dataclasses.replace(recipe, data=public.data) != public:
        raise UserError(f"the recipe of {recipe.name} is not that of {path}; train it again")
    return path


def round_run(run: Path, target: Path, recipe: Recipe) -> None:
    """Write a run's weights in float16, then score and draw what these give, on as many images as the run was."""
    epochs = len((run / "metrics.jsonl").read_text().splitlines())
    save_weights(target, load_run(run), recipe, epochs, half=True)
    protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
    common = ["--data.root", recipe.data.root, "--seed", str(protocol["seed"])]
    counts = ["--n", str(protocol["n"]), "--particles", str(protocol["particles"])]
    subprocess.run([sys.executable, "-m", "ncode_gen.evaluate", str(target), *counts, *common], check=True)
    subprocess.run([sys.executable, "-m", "ncode_gen.gallery", str(target), *common], check=True)


def main() -> None:
    """Copy the run and write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--half", action="store_true", help="round the weights to float16")
    options = parser.parse_args()
    run: Path = options.run
    for name in FILES:
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}; train and evaluate it first")
    if not options.half and (run / "weights.safetensors").stat().st_size > LARGEST:
        raise UserError(f"the weights of {run} are larger than {LARGEST} bytes; ship them with --half")
    recipe = load_recipe(run)
    source = public_recipe(recipe)
    target = ROOT / "checkpoints" / recipe.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / name, target / name)
    shutil.copytree(run / "gallery", target / "gallery", dirs_exist_ok=True)
    if options.half:
        round_run(run, target, recipe)
    (target / "gallery" / "report.html").unlink(missing_ok=True)  # large, and made by one command
    text = card(target, recipe, half=options.half)
    write_text(target / "README.md", text)
    result = json.loads((target / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    environment = json.loads((run / "environment.json").read_text())
    trained = {"devices": devices_of(environment), "threads": environment["threads"]}
    write_header(source, result | {"training_seconds": sum(row["seconds"] for row in rows)} | trained)
    print(text)


if __name__ == "__main__":
    main()
