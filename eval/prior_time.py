"""Score and time of priors of codes that are vectors: `python eval/prior_time.py fashion-mnist-ncode-refined`.

Declared before it was run: each prior is fitted, on one thread, to 40,000 codes of a run's training images, and scored
by the Frechet distance of its samples, through the run's decoder and refiner, to the training images. Rows: the flow
from a Gaussian mixture (`flow`), as the recipe has it; the deep flow (`deep-flow`) of several sizes, with a guide, at
autoguidance 1, 1.5 and 2. Of these the best is compared with `flow`: pair of the headline. Writes
eval/results/prior-time-NAME.md, unless `--out` names another file.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from to_training import opened, parser_of, write_table

from ncode_gen.config import section
from ncode_gen.distributions.priors import DeepFlow
from ncode_gen.metrics import sample_features
from ncode_gen.runtime.seeding import seeded
from ncode_gen.training.fit import fit_prior

CODES, SCALES = 40_000, (1.0, 1.5, 2.0)
ROWS: dict[str, dict[str, Any]] = {
    "flow": {"kind": "flow", "components": 0},
    "deep-flow, 256 x 4": {
        "kind": "deep-flow",
        "width": 256,
        "layers": 4,
        "iterations": 2500,
        "batch": 256,
        "guide": 64,
    },
    "deep-flow, 384 x 6": {
        "kind": "deep-flow",
        "width": 384,
        "layers": 6,
        "iterations": 2500,
        "batch": 256,
        "guide": 64,
    },
    "deep-flow, 512 x 6": {
        "kind": "deep-flow",
        "width": 512,
        "layers": 6,
        "iterations": 3000,
        "batch": 256,
        "guide": 64,
    },
}


def main() -> None:
    """Fit and score the priors."""
    parser = parser_of(__doc__, "codes that are vectors", 10000)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = opened(options)
    model, device = run.model, run.model.device
    order = torch.randperm(len(run.train), generator=seeded(options.seed))[:CODES]
    with torch.no_grad():
        codes = torch.cat([model.encode(batch) for batch in run.train.batches(500, order, device)])
    lines = [
        *run.title("prior_time.py", f", priors of {len(codes):,} codes (d = {model.dim}), seed {options.seed}"),
        "| prior | weights | s | FID | autoguidance 1.5 | 2 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in options.rows:
        keys = dict(ROWS[name])
        torch.manual_seed(options.seed)
        prior = section("prior", **keys).build(model.dim).to(device)
        begun = time.perf_counter()
        fit_prior(prior, codes, options.seed)
        seconds = time.perf_counter() - begun
        model.prior = prior.eval().requires_grad_(False)
        found = []
        for scale in SCALES if isinstance(prior, DeepFlow) else SCALES[:1]:
            if isinstance(prior, DeepFlow):
                prior.autoguidance = scale
            found.append(run.distance(sample_features(model, run.network, options.n, seed=options.seed, quiet=True)))
            print(f"{name}, {seconds:.0f} s, autoguidance {scale:g}: {found[-1]:.3f}", flush=True)
        weights = sum(value.numel() for value in prior.parameters())
        cells = [f"{value:.2f}" for value in found] + ["-"] * (len(SCALES) - len(found))
        lines.append(f"| {name} | {weights:,} | {seconds:.0f} | {' | '.join(cells)} |")
    write_table(lines, options.out, f"prior-time-{run.recipe.name}")


if __name__ == "__main__":
    main()
