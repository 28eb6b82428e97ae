"""FID of a flow of pixels against evaluations, for solvers and time grids: `python eval/pixel_solver.py RUN`.

Scores a run's samples by the Frechet distance to its training images, so that `observation.method`, `steps` and `shift`
can be chosen without a look at the test images. All settings have the same codes and noises; with `--codes`, the codes
are those of training images, so that the prior has no part in it. Writes eval/results/pixel-solver-NAME.md, unless
`--out` names another file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ncode_gen.config import known_kinds
from ncode_gen.data import load_data
from ncode_gen.distributions import PixelFlow
from ncode_gen.metrics import GaussianStatistics, frechet_distance, load_features
from ncode_gen.runfolder.run import find_run, load_recipe, load_run
from ncode_gen.runtime.device import computes_in_bf16, resolve_device
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_text
from ncode_gen.runtime.seeding import seeded
from ncode_gen.solvers import evaluations as evaluations_of

ROOT = Path(__file__).parent.parent
METHODS, SHIFTS, EVALUATIONS = ("euler", "midpoint", "heun", "rk4"), (0.5, 1.0, 2.0), (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Score a run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run with a flow of pixels")
    parser.add_argument("--root", default="", help="folder or file of the set, if not the recipe's")
    parser.add_argument("--features", choices=known_kinds("features"), help="feature network; by default the set's")
    parser.add_argument("--n", type=int, default=2500, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--codes", action="store_true", help="take the codes of training images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="file of the table")
    options = parser.parse_args()
    folder, device = find_run(options.run), resolve_device(options.device)
    recipe, model = load_recipe(folder), load_run(folder, device)
    observation = model.observation
    if not isinstance(observation, PixelFlow):
        parser.error(f"{folder} has no flow of pixels")
    if computes_in_bf16(device):
        model.compute_in(torch.bfloat16)
    train = load_data(recipe.data.at(options.root)).train
    network = load_features(options.features or recipe.chosen_features, None, device)
    known = network.of(train.batches(250, device=device))
    real = GaussianStatistics.of(known)
    order = torch.randperm(len(train), generator=seeded(options.seed))[: options.n]
    if options.codes:
        codes = torch.cat([model.encode(batch) for batch in train.batches(250, order, device)])
    else:
        codes = model.prior.sample(options.n, seeded(options.seed))
    floor = frechet_distance(real, GaussianStatistics.of(known[order]))
    commit = describe_environment(device, options.seed)["commit"]
    source = "codes of training images" if options.codes else "codes of the prior"
    lines = [
        f"FID[{network.name}, n={options.n}] of `{recipe.name}` to its {len(known):,} training images, {source}, seed "
        f"{options.seed}, by `python eval/pixel_solver.py`; as many training images have {floor:.2f}. Commit {commit}.",
        "",
        f"| solver | shift | {' | '.join(map(str, options.evaluations))} |",
        "|---|---:|" + "---:|" * len(options.evaluations),
    ]
    own = observation.flow.options
    for method in options.methods:
        stages = evaluations_of(method, 1)
        for shift in options.shifts:
            observation.flow.options, observation.shift = own.but(method=method), shift
            found = []
            for count in options.evaluations:
                if count % stages or (count == stages and shift != options.shifts[0]):  # one step has one grid
                    found.append("")
                    continue
                images = model.sample_images(codes, seeded(options.seed), evaluations=count)
                score = frechet_distance(real, GaussianStatistics.of(network.of(images.split(250))))
                found.append(f"{score:.2f}")
                print(f"{method}, shift {shift:g}, {count} evaluations: {score:.3f}", flush=True)
            lines.append(f"| {method} | {shift:g} | {' | '.join(found)} |")
    text = "\n".join(lines) + "\n"
    write_text(options.out or ROOT / "eval" / "results" / f"pixel-solver-{recipe.name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
