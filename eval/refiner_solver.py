"""Which steps suit a trained refiner: `python eval/refiner_solver.py runs/mnist-ncode-refined`.

A refiner's flow is sampled in few steps, and where the second stage of each lies (alpha) decides how sharp images are.
This scores a run's samples under several solvers by the Frechet distance to its training images, so that a recipe's
`observation.steps`, `alpha` and `zero_mean_residual` can be chosen without a look at the test images. A row of real
images, as many as there are samples, is the floor. Writes eval/results/refiner-solver-NAME.md, unless `--out` names
another file.
"""

from __future__ import annotations

from to_training import opened, parser_of, write_table

from ncode_gen.distributions import Refined
from ncode_gen.metrics import sample_features

STEPS, ALPHAS = (1, 2), (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


def main() -> None:
    """Score a run from the command line."""
    parser = parser_of(__doc__, "a refiner", 10000)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    options = parser.parse_args()
    run = opened(options)
    if not isinstance(run.model.observation, Refined):
        parser.error(f"{options.run} has no refiner; train one with --resume {options.run} --observation.kind refined")
    refiner = run.model.observation.refiner
    tried = [f"--{key} {' '.join(map(str, getattr(options, key)))}" for key in ("steps", "alphas")]
    lines = [
        *run.title(f"refiner_solver.py RUN {' '.join(tried)}", f", seed {options.seed}"),
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
                features = sample_features(run.model, run.network, options.n, seed=options.seed, quiet=True)
                found.append(run.distance(features))
                print(f"zero mean {zero_mean}, steps {steps}, alpha {alpha:g}: {found[-1]:.3f}", flush=True)
            cells = " | ".join(f"{value:.2f}" for value in found)
            lines.append(f"| {'yes' if zero_mean else 'no'} | {steps} | {refiner.evaluations(steps)} | {cells} |")
    write_table(lines, options.out, f"refiner-solver-{run.recipe.name}")


if __name__ == "__main__":
    main()
