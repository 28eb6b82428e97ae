"""How a refiner is trained: what it learns from, and one update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..config.recipe import Recipe
from ..data.sets import Images
from ..distributions import LatentModel, Refiner
from ..runtime.progress import track
from ..runtime.seeding import seeded
from .step import Step, StepOptions

__all__ = ["KnownPictures", "RefinementStep", "know_pictures", "scale_refiner"]

SCALED_BY = 2000
AT_A_TIME = 500
IN_MEMORY = 2**30


def scale_refiner(refiner: Refiner, model: LatentModel, images: Images, seed: int) -> None:
    """Let a refiner take the scale of a model's latents, and of what its decoder leaves out, from some images."""
    generator = seeded(seed + 3)
    some = torch.randperm(len(images), generator=generator)[:SCALED_BY]
    chosen = torch.cat(list(images.batches(AT_A_TIME, some, model.device)))
    latents = model.draw(chosen, generator)
    refiner.take_scale(chosen, model.decode(latents), latents)


@dataclass(frozen=True)
class KnownPictures:
    """The latents of all training images and the decoder's pictures of them, on the CPU.

    Attributes:
        latents: (n, d).
        pictures: (n, C, H, W) in [0, 1], float16.
    """

    latents: Tensor
    pictures: Tensor


def know_pictures(
    model: LatentModel,
    images: Images,
    *,
    quiet: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> KnownPictures | None:
    """Encode and decode all training images once, if they always have the same latents and memory is enough.

    Args:
        model: the trained model.
        images: the training images.
        quiet: whether to show no progress.
        meanwhile: called now and then; what it raises ends the work.

    Returns:
        What was found; None for a random posterior, or more than 1 GiB.
    """
    each = 2 * math.prod(images.shape) + 4 * model.dim
    if not model.posterior.deterministic or len(images) * each > IN_MEMORY:
        return None
    latents, pictures = [], []
    with track("pictures", len(images), quiet=quiet) as progress:
        for batch in images.batches(AT_A_TIME, device=model.device):
            latents.append(model.encode(batch))
            pictures.append(model.decode(latents[-1]).half().cpu())
            progress.advance(len(batch))
            meanwhile()
    return KnownPictures(torch.cat(latents).cpu(), torch.cat(pictures))


class RefinementStep(Step):
    """A step of a refiner: flow matching from a model's own pictures to the images; the figure is the loss.

    Args:
        refiner: the refiner that is trained.
        source: the trained model whose latents and pictures it learns from, on the same device.
        recipe: the recipe.
        know: returns these latents and pictures, where they can be known; asked once, in the first step.
        **options: see `Step`.
    """

    def __init__(
        self,
        refiner: Refiner,
        source: LatentModel,
        recipe: Recipe,
        know: Callable[[], KnownPictures | None] = lambda: None,
        **options: Unpack[StepOptions],
    ) -> None:
        def loss(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            found = refiner.matching(*arguments).mean()
            return found, found.detach()

        super().__init__(refiner, recipe, loss, **options)
        self.source, self._know = source, know

    @cached_property
    def known(self) -> KnownPictures | None:
        """The latents and pictures of all training images, where they can be known."""
        return self._know()

    def inputs(
        self, images: Tensor, beta: float, generator: torch.Generator, numbers: Tensor | None
    ) -> list[tuple[Tensor | None, ...]]:
        """Return images, pictures, latents, noise and times of each part."""
        count, part, device = len(images) * self.workers.count, self.workers.part, images.device
        if numbers is not None and self.known is not None:
            latents = self.known.latents[numbers].to(device)
            pictures = self.known.pictures[numbers].to(device).float()
        else:
            noise = part(torch.randn(count, self.source.dim, generator=generator))
            latents = self.source.latents_under(images, noise)
            pictures = self.source.decode(latents)
        noise = part(torch.randn(count, *images.shape[1:], generator=generator)).to(device)
        times = part(torch.rand(count, generator=generator)).to(device)
        given = (images, pictures, latents, noise, times)
        return list(zip(*(tensor.chunk(self.recipe.training.accumulate) for tensor in given), strict=True))
