"""Fit Gaussian mixtures to a model's latents, ours beside scikit-learn's: `python eval/mixtures.py RUN`.

The same latents, a tenth of them held out, the same number of rounds from k-means; log-likelihood in nats a latent, and
seconds side by side. Writes eval/results/mixtures.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from ncode_gen.data.sets import load_data
from ncode_gen.distributions.priors.expectation import fit_gaussians
from ncode_gen.runfolder.run import find_run, load_recipe, load_run
from ncode_gen.runtime.files import write_text

RESULT = Path(__file__).parent / "results" / "mixtures.md"
ROUNDS, SEED = 20, 0


def latents_of(run: Path) -> torch.Tensor:
    """Return a draw of each training image's latent, (n, d), each dimension of unit scale."""
    model = load_run(run)
    generator = torch.Generator().manual_seed(SEED)
    images = load_data(load_recipe(run).data).train
    found = torch.cat([model.sample_posterior(batch, generator) for batch in images.batches(500)])
    return (found - found.mean(0)) / found.std(0)


def main() -> None:
    """Fit all sizes both ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, or a folder in checkpoints/")
    parser.add_argument("--components", nargs="*", type=int, default=[10, 50, 200])
    options = parser.parse_args()
    run = find_run(options.run)
    latents = latents_of(run)
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(SEED))
    held, rest = latents[order[: len(order) // 10]], latents[order[len(order) // 10 :]]
    warnings.simplefilter("ignore", ConvergenceWarning)
    lines = [
        f"# Mixtures of Gaussians on the latents of {run.name}",
        "",
        f"`python eval/mixtures.py {options.run}`: {len(rest)} latents of {latents.shape[1]} dimensions, {len(held)} "
        f"held out; {ROUNDS} rounds at most; {torch.get_num_threads()} threads of a CPU. Nats a held-out latent.",
        "",
        "| Gaussians | ours, nats | scikit-learn, nats | ours, s | scikit-learn, s | times faster |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for components in options.components:
        start = time.perf_counter()
        ours = fit_gaussians(rest, components, SEED, ROUNDS)
        middle = time.perf_counter()
        theirs = GaussianMixture(components, reg_covar=1e-5, random_state=SEED, max_iter=ROUNDS)
        theirs.fit(rest.double().numpy())
        spent = middle - start, time.perf_counter() - middle
        nats = float(torch.logsumexp(ours.joint_log_prob(held.double()), 1).mean())
        reference = float(theirs.score(held.double().numpy()))
        lines.append(
            f"| {components} | {nats:.2f} | {reference:.2f} | {spent[0]:.1f} | {spent[1]:.1f} | "
            f"{spent[1] / spent[0]:.1f} |"
        )
        print(lines[-1], flush=True)
    write_text(RESULT, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
