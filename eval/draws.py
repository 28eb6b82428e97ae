"""How far a Frechet distance depends on which 10,000 samples are drawn: `python eval/draws.py mnist-ncode-refined`.

Draws of a published model, or of a run, with several seeds, and disjoint parts of the training images, each of 10,000,
against all test images; where the device computes in bfloat16, the same draws in that too. Writes
eval/results/draws-NAME.{json,md}.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ncode_gen.data.sets import load_data
from ncode_gen.metrics import (
    GaussianStatistics,
    frechet_distance,
    load_features,
    sample_features,
)
from ncode_gen.runfolder.run import find_run, load_recipe, load_run
from ncode_gen.runtime.device import computes_in_bf16, resolve_device, use_full_precision
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_json, write_text

ROOT = Path(__file__).parent.parent
COUNT = 10000


def scored(name: str, draws: int, count: int, device: torch.device, root: str = "") -> dict[str, Any]:
    """Return the Frechet distances of draws of a model, and of parts of its training images, to its test images.

    Args:
        name: a run folder, or one in checkpoints/.
        draws: number of draws, of seeds 0 and up.
        count: images of a draw and of a part.
        device: where to compute.
        root: folder of the image sets, if not the recipe's.
    """
    folder = find_run(name)
    recipe = load_recipe(folder)
    splits = load_data(recipe.data.at(root))
    network = load_features(recipe.chosen_features, None, device)
    real, train = (network.of(part.batches(250)) for part in (splits.test, splits.train))
    model = load_run(folder, device)
    known = GaussianStatistics.of(real)

    def distance(some: torch.Tensor) -> float:
        return round(frechet_distance(known, GaussianStatistics.of(some)), 4)

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    environment = describe_environment(device, 0)

    def drawn() -> list[float]:
        return [distance(sample_features(model, network, count, seed=s, quiet=True)) for s in range(draws)]

    found = {
        "features": network.name,
        "count": count,
        "draws": drawn(),
        "parts": [distance(train[part]) for part in order.split(count) if len(part) == count],
        "commit": environment["commit"],
        "device": environment["device"],
    }
    if computes_in_bf16(device):
        model.compute_in(torch.bfloat16)
        found["draws_bf16"] = drawn()
    return found


def table(name: str, found: dict[str, Any]) -> str:
    """Return the distances as Markdown."""
    lines = [f"# FID[{found['features']}, n={found['count']}, test] by draw: {name}", ""]
    lines += ["| what | mean | standard deviation | each |", "|---|---:|---:|---|"]
    draws = f"samples, seeds 0 to {len(found['draws']) - 1}"
    named = {draws: "draws", "the same, drawn in bf16": "draws_bf16", "parts of the training images": "parts"}
    for what, key in named.items():
        values = found.get(key)
        if not values:
            continue
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {what} | {mean(values):.2f} | {stdev(values):.2f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score all draws and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder in checkpoints/, or a run folder with --out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--out", type=Path, help="file of the table, instead of the one in eval/results/")
    options = parser.parse_args()
    use_full_precision()
    published = f"checkpoints/{options.name}"
    found = scored(
        options.name if options.out else published, options.draws, COUNT, resolve_device(options.device), options.root
    )
    path = options.out or ROOT / "eval" / "results" / f"draws-{options.name}.md"
    text = table(options.name, found)
    write_json(path.with_suffix(".json"), found)
    write_text(path, text)
    print(text)


if __name__ == "__main__":
    main()
