"""How far a Frechet distance depends on which 10,000 samples are drawn: `python eval/draws.py mnist-ncode-refined`.

Draws of a shipped model with several seeds, and disjoint parts of the training images, each of 10,000, against all test
images. Writes eval/results/draws-NAME.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from ncode_gen.data import load_data
from ncode_gen.files import write_text
from ncode_gen.metrics import default_features, load_features, sample_features
from ncode_gen.metrics.frechet import frechet_score
from ncode_gen.run import find_run, load_recipe, load_run, resolve_device, use_full_precision

ROOT = Path(__file__).parent.parent
COUNT = 10000


def main() -> None:
    """Score all draws and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder in checkpoints/")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    device = resolve_device(options.device)
    use_full_precision()
    folder = find_run(f"checkpoints/{options.name}")
    data = load_recipe(folder).data
    splits = load_data(dataclasses.replace(data, root=options.root))
    network = load_features(default_features(data.name), None, device)
    real, train = (network.of(part.batches(250)) for part in (splits.test, splits.train))
    model = load_run(folder, device).to(memory_format=torch.channels_last)
    drawn = [
        frechet_score(real, sample_features(model, network, COUNT, seed=seed, quiet=True)).value
        for seed in range(options.draws)
    ]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    parts = [frechet_score(real, train[part]).value for part in order.split(COUNT) if len(part) == COUNT]
    lines = [
        f"# FID[{network.name}, n={COUNT}, test] by draw: {options.name}",
        "",
        "| what | mean | standard deviation | each |",
        "|---|---:|---:|---|",
    ]
    for what, values in ((f"samples, seeds 0 to {options.draws - 1}", drawn), ("parts of the training images", parts)):
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {what} | {np.mean(values):.2f} | {np.std(values, ddof=1):.2f} | {each} |")
    text = "\n".join(lines) + "\n"
    write_text(ROOT / "eval" / "results" / f"draws-{options.name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
