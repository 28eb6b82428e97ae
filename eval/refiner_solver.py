"""Which steps suit a trained refiner: `python eval/refiner_solver.py runs/mnist-ncode-refined`.

A refiner's flow is sampled in few steps, and where the second stage of each lies (alpha) decides how sharp images are.
This scores a run's samples under several solvers by the Frechet distance to its training images, so that a recipe's
`observation.steps`, `alpha` and `zero_mean_residual` can be chosen without a look at the test images. A row of real
images, as many as there are samples, is the floor. Writes eval/results/refiner-solver-NAME.md, unless `--out` names
another file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ncode_gen.config import known_kinds
from ncode_gen.data.sets import load_data
from ncode_gen.distributions import Refined
from ncode_gen.metrics import (
    GaussianStatistics,
    frechet_distance,
    load_features,
    sample_features,
)
from ncode_gen.runfolder.run import load_recipe, load_run
from ncode_gen.runtime.files import write_text

ROOT = Path(__file__).parent.parent
STEPS, ALPHAS = (1, 2), (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


def main() -> None:
    """Score a run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run with a refiner")
    parser.add_argument("--root", default="", help="folder of the data set, if not the recipe's")
    parser.add_argument(
        "--features", choices=known_kinds("features"), help="feature network; by default the data set's"
    )
    parser.add_argument("--n", type=int, default=10000, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--out", type=Path, help="file of the table")
    options = parser.parse_args()
    recipe, device = load_recipe(options.run), torch.device("cpu")
    model = load_run(options.run, device)
    if not isinstance(model.observation, Refined):
        parser.error(f"{options.run} has no refiner; train one with --resume {options.run} --observation.kind refined")
    refiner = model.observation.refiner
    data = recipe.data.at(options.root)
    train = load_data(data).train
    features = options.features or recipe.chosen_features
    network = load_features(features, None, device)
    known = network.of(train.batches(250))
    real = GaussianStatistics.of(known)

    def distance(some: Tensor) -> float:
        return float(frechet_distance(real, GaussianStatistics.of(some)))

    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(options.seed))
    tried = [f"--{key} {' '.join(map(str, getattr(options, key)))}" for key in ("steps", "alphas")]
    lines = [
        f"FID[{network.name}, n={options.n}] of `{recipe.name}` to its {len(known):,} training images, "
        f"seed {options.seed}: `python eval/refiner_solver.py RUN {' '.join(tried)}`.",
        f"As many of the training images themselves have {distance(known[order[: options.n]]):.2f}. "
        "Zero mean: the residual is taken to have mean zero, and the U-net is not evaluated at noise.",
        "",
        f"| zero mean | steps | evaluations | {' | '.join(f'alpha {alpha:g}' for alpha in options.alphas)} |",
        "|---|---:|---:|" + "---:|" * len(options.alphas),
    ]
    own = refiner.flow.options
    for zero_mean in (True, False):
        refiner.zero_mean_residual = zero_mean
        for steps in options.steps:
            found = []
            for alpha in options.alphas:
                refiner.flow.options = own.but(method=f"rk2:{alpha}", steps=steps)
                found.append(distance(sample_features(model, network, options.n, seed=options.seed, quiet=True)))
                print(f"zero mean {zero_mean}, steps {steps}, alpha {alpha:g}: {found[-1]:.3f}", flush=True)
            cells = " | ".join(f"{value:.2f}" for value in found)
            lines.append(f"| {'yes' if zero_mean else 'no'} | {steps} | {refiner.evaluations(steps)} | {cells} |")
    text = "\n".join(lines) + "\n"
    write_text(options.out or ROOT / "eval" / "results" / f"refiner-solver-{recipe.name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
