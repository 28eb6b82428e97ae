"""A prior fitted by itself, without a run folder."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions.priors import Prior
from ..runtime.seeding import seeded
from .phases import PRIOR_CLIP, PRIOR_DECAY, PRIOR_LR, PRIOR_WARMUP
from .step import Average, Step, StepSettings, learning_rate


def fit_prior(prior: Prior, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
    """Fit a prior to latents, as the last phase of training does.

    Args:
        prior: the prior.
        latents: (n, d).
        seed: seed of all that is random in it.
        progress: called now and then with the share of the work that is done.

    Raises:
        UserError: too few latents, or one that is not finite.

    >>> from ncode_gen.distributions.priors import FlowPrior
    >>> prior = FlowPrior(2, hidden=8, iterations=2)
    >>> fit_prior(prior, torch.randn(300, 2))
    >>> prior.sample(5).shape
    torch.Size([5, 2])
    """
    report, total = progress or (lambda share: None), prior.iterations
    rest = 0.5 if total else 0.0
    prior.fit(latents, seed, lambda share: report((1 - rest) * share))
    if total:
        trained = copy.deepcopy(prior).requires_grad_(True)

        def loss(*batch: Tensor) -> tuple[Tensor, Tensor]:
            found = trained.loss(*batch)
            return found, found.detach()

        step, average = Step(trained, loss, StepSettings(grad_clip=PRIOR_CLIP)), Average(prior, trained, PRIOR_DECAY)
        pairs, generator = prior.pairs(latents, seed), seeded(seed)
        device = next(prior.parameters()).device
        with torch.enable_grad():
            for number in range(total):
                batch = [part.to(device) for part in pairs(number)]
                times = torch.rand(len(batch[0]), generator=generator).to(device)
                step([(*batch, times)], learning_rate(PRIOR_LR, PRIOR_WARMUP / total, number, total))
                average.update(number)
                report(1 - rest + rest * (number + 1) / total)
    prior.finish()
