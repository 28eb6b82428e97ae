"""Copy a finished and scored run into checkpoints/, with a card: `python eval/export.py runs/mnist-ncode-open`.

The line of the recipe's header that says what was measured is written too. `--half` rounds the weights to float16, for
a file of half the size, and scores and draws the rounded model anew. `--again` scores what is published as it was
scored before, by the program as it is now: `python eval/export.py checkpoints/mnist-ncode-open --again`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from headline import devices_of
from publish import write_header
from safetensors import safe_open

from ncode_gen.config import Recipe, section
from ncode_gen.errors import UserError
from ncode_gen.report.score_labels import UNITS, solver_note
from ncode_gen.runfolder.records import read_record, write_record
from ncode_gen.runfolder.run import load_recipe, load_run, save_weights
from ncode_gen.runtime.files import write_text

ROOT = Path(__file__).parent.parent
LARGEST = 8 * 2**20
FILES = ("recipe.toml", "weights.safetensors", "evaluation.json", "environment.json", "metrics.jsonl")


def is_half(run: Path) -> bool:
    """Return whether weights of a run are rounded to float16."""
    with safe_open(run / "weights.safetensors", framework="pt") as file:
        names = sorted(file.keys())
        return any(file.get_slice(name).get_dtype() == "F16" for name in names)


def card(run: Path, recipe: Recipe) -> str:
    """Return the card of a run as Markdown."""
    result = read_record(run / "evaluation.json")
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
        *([f"| starts from | the weights of {environment['init']} |"] if environment.get("init") else []),
        f"| command | `python -m ncode_gen.train models/{recipe.data.name}/{model}.toml` |",
        f"| time | {seconds:.0f} s for {len(rows)} epochs, {where} |",
        f"| versions | ncode_gen {environment['ncode_gen']}, torch {environment['packages']['torch']} |",
        f"| date | {datetime.date.today().isoformat()} |",
        f"| scored with | `python -m ncode_gen.{protocol['environment']['command'].replace('.py', '', 1)}` |",
    ]
    if solver and solver["refined"] != "none":
        some = f", {protocol['likelihood_images']} test images" if "likelihood_images" in protocol else ""
        lines.append(f"| likelihoods | K = {protocol['particles']}, {solver_note(solver)}{some} |")
    if is_half(run):
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


def asked(protocol: dict[str, Any]) -> list[str]:
    """Return the options of `python -m ncode_gen.evaluate` that a protocol was made with, images' place apart."""
    options = [part for key in ("n", "particles", "seed") for part in (f"--{key}", str(protocol[key]))]
    if protocol["features"]["name"] != section("data", name=protocol["data"]).features:
        options += ["--features", protocol["features"]["name"]]
    for key in ("evaluations", "guidance", "autoguidance", "likelihood_images"):
        if key in protocol:
            options += [f"--{key.replace('_', '-')}", str(protocol[key])]
    return [*options, "--no-refine"] if "refiner" in protocol else options


def record_evaluation(source: Path, target: Path) -> None:
    """Copy an evaluation with its checksum, and as its command the one that scores the published folder the same way.

    Args:
        source: evaluation.json of the run, or another file of `python -m ncode_gen.evaluate`.
        target: folder in checkpoints/.
    """
    result = read_record(source)
    protocol = result["protocol"]
    protocol["environment"]["command"] = f"evaluate.py checkpoints/{target.name} {' '.join(asked(protocol))}"
    write_record(target / "evaluation.json", result)


def score(target: Path, recipe: Recipe, root: str) -> None:
    """Score a folder in checkpoints/ as its evaluation says that it, or the run that it came from, was scored."""
    options = asked(read_record(target / "evaluation.json")["protocol"])
    with tempfile.TemporaryDirectory() as place:
        found = Path(place) / "evaluation.json"
        places = ["--out", str(found), "--data.root", root or recipe.data.place]
        subprocess.run([sys.executable, "-m", "ncode_gen.evaluate", str(target), *options, *places], check=True)
        record_evaluation(found, target)


def copy_run(run: Path, target: Path, recipe: Recipe, *, half: bool) -> None:
    """Copy a run into checkpoints/; its weights rounded to float16, then scored and drawn anew, if so wanted."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / name, target / name)
    record_evaluation(run / "evaluation.json", target)
    shutil.copytree(run / "gallery", target / "gallery", dirs_exist_ok=True)
    if half:
        epochs = len((run / "metrics.jsonl").read_text().splitlines())
        save_weights(target, load_run(run), recipe, epochs, half=True)
        score(target, recipe, "")
        gallery = [sys.executable, "-m", "ncode_gen.gallery", str(target), "--data.root", recipe.data.place]
        subprocess.run(gallery, check=True)
    (target / "gallery" / "report.html").unlink(missing_ok=True)  # large, and made by one command


def tell(target: Path, recipe: Recipe, source: Path) -> str:
    """Write and return the card of a folder in checkpoints/, and write the header of its recipe in models/."""
    text = card(target, recipe)
    write_text(target / "README.md", text)
    rows = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    environment = json.loads((target / "environment.json").read_text())
    trained = {"devices": devices_of(environment), "threads": environment["threads"]}
    found = read_record(target / "evaluation.json")
    write_header(source, found | {"training_seconds": sum(row["seconds"] for row in rows)} | trained)
    return text


def main() -> None:
    """Copy the run, or score it again, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--half", action="store_true", help="round the weights to float16")
    parser.add_argument("--again", action="store_true", help="score a folder in checkpoints/ again")
    parser.add_argument("--root", default="", help="folder of the image sets, if not the recipe's; with --again")
    options = parser.parse_args()
    run: Path = options.run
    for name in FILES:
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}; train and evaluate it first")
    recipe = load_recipe(run)
    source, target = public_recipe(recipe), ROOT / "checkpoints" / recipe.name
    if options.again:
        if run.resolve() != target:
            raise UserError(f"{run} is not published; leave --again out, or name {target.relative_to(ROOT)}")
        score(target, recipe, options.root)
    else:
        if not options.half and (run / "weights.safetensors").stat().st_size > LARGEST:
            raise UserError(f"the weights of {run} are larger than {LARGEST} bytes; export them with --half")
        copy_run(run, target, recipe, half=options.half)
    print(tell(target, recipe, source))


if __name__ == "__main__":
    main()
