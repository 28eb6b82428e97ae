"""The prior that is fitted when the rest of a model is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..data.sets import Images
from ..distributions import LatentModel
from ..runtime.progress import track
from ..runtime.seeding import seeded

__all__ = ["fit_prior"]

PRIOR_LATENTS = 60000


def fit_prior(
    model: LatentModel,
    images: Images,
    seed: int,
    device: torch.device,
    *,
    quiet: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Fit the prior, if it is to be fitted, to posterior draws of the training images.

    Args:
        model: the model.
        images: the training images.
        seed: seed of the draws and of the fit.
        device: where the model is.
        quiet: whether to show no progress.
        meanwhile: called now and then; what it raises ends the fit.
    """
    if not model.prior.fits:
        return
    generator = seeded(seed + 2)
    latents, seen = [], 0
    for batch in images.batches(500, device=device):
        latents.append(model.draw(batch, generator).cpu())
        seen += len(batch)
        meanwhile()
        if seen >= PRIOR_LATENTS:
            break
    with track("prior", 100, quiet=quiet) as shown:
        done = 0

        def progress(share: float) -> None:
            nonlocal done
            meanwhile()
            shown.advance(int(100 * share) - done)
            done = int(100 * share)

        model.prior.fit(torch.cat(latents), seed, progress)
