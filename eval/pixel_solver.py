"""FID of a flow of pixels against evaluations, for solvers and time grids: `python eval/pixel_solver.py RUN`.

Scores a run's samples by the Frechet distance to its training images, so that `observation.method`, `steps` and `shift`
can be chosen without a look at the test images. All settings have the same codes and noises; with `--codes`, the codes
are those of training images, so that the prior has no part in it. Writes eval/results/pixel-solver-NAME.md, unless
`--out` names another file.
"""

from __future__ import annotations

import torch
from to_training import opened, parser_of, write_table

from ncode_gen.distributions import PixelFlow
from ncode_gen.runtime.seeding import seeded
from ncode_gen.solvers import evaluations as evaluations_of

METHODS, SHIFTS, EVALUATIONS = ("euler", "midpoint", "heun", "rk4"), (0.5, 1.0, 2.0), (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Score a run from the command line."""
    parser = parser_of(__doc__, "a flow of pixels", 2500)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--codes", action="store_true", help="take the codes of training images")
    options = parser.parse_args()
    run = opened(options, bf16=True)
    model, observation = run.model, run.model.observation
    if not isinstance(observation, PixelFlow):
        parser.error(f"{options.run} has no flow of pixels")
    if options.codes:
        codes = torch.cat([model.encode(batch) for batch in run.train.batches(250, run.order, model.device)])
    else:
        codes = model.prior.sample(options.n, seeded(options.seed))
    source = "codes of training images" if options.codes else "codes of the prior"
    lines = [
        *run.title("pixel_solver.py", f", {source}, seed {options.seed}"),
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
                score = run.distance_of(model.sample_images(codes, seeded(options.seed), evaluations=count))
                found.append(f"{score:.2f}")
                print(f"{method}, shift {shift:g}, {count} evaluations: {score:.3f}", flush=True)
            lines.append(f"| {method} | {shift:g} | {' | '.join(found)} |")
    write_table(lines, options.out, f"pixel-solver-{run.recipe.name}")


if __name__ == "__main__":
    main()
