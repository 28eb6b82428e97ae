"""FID of a deep flow prior against autoguidance and solver steps: `python eval/guidance.py RUN`.

Scores a run's samples by the Frechet distance to its training images, so that `prior.autoguidance` and `prior.steps`
can be chosen without a look at the test images. Writes eval/results/guidance-NAME.md, unless `--out` names another.
"""

from __future__ import annotations

from to_training import opened, parser_of, write_table

from ncode_gen.distributions.priors import DeepFlow
from ncode_gen.runtime.seeding import seeded

SCALES, STEPS = (1.0, 1.5, 2.0, 2.5, 3.0), (2, 4, 8)


def main() -> None:
    """Score a run from the command line."""
    parser = parser_of(__doc__, "a deep flow prior that has a guide", 2500)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--evaluations", type=int, help="of the flow of pixels; by default the recipe's")
    options = parser.parse_args()
    run = opened(options, bf16=True)
    prior = run.model.prior
    if not isinstance(prior, DeepFlow) or prior.guide is None:
        parser.error(f"{options.run} has no prior with a guide; train with --prior.guide 32")
    lines = [
        *run.title("guidance.py", f", seed {options.seed}"),
        f"| steps of the prior | {' | '.join(f'autoguidance {scale:g}' for scale in options.scales)} |",
        "|---:|" + "---:|" * len(options.scales),
    ]
    own = prior.flow.options
    for steps in options.steps:
        found = []
        prior.flow.options = own.but(steps=steps)
        for scale in options.scales:
            images = run.model.sample(
                options.n, seeded(options.seed), autoguidance=scale, evaluations=options.evaluations
            )
            found.append(run.distance_of(images))
            print(f"{steps} steps, autoguidance {scale:g}: {found[-1]:.3f}", flush=True)
        lines.append(f"| {steps} | {' | '.join(f'{value:.2f}' for value in found)} |")
    write_table(lines, options.out, f"guidance-{run.recipe.name}")


if __name__ == "__main__":
    main()
