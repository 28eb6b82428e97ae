"""Reflow: a flow of pixels, tuned so that one or two evaluations are near many."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..config import Recipe
from ..distributions import PixelFlow
from .image_phase import ImagePhase, context_labels
from .phase import Context
from .validation import validate_evaluations

AT_NOISE = 0.5


class ReflowPhase(ImagePhase):
    """Flow matching along straight lines between noises and the images that the trained flow leads them to.

    Under one control these lines do not cross, so the velocity at the noise leads straight to its image, and few
    evaluations suffice. Half of the times are 0, which one evaluation is all about. Encoder, prior and codes stay.

    Source: Liu et al., "Flow straight and fast", ICLR 2023, section 2.2.

    Args:
        context: what phases have in common.
    """

    name = "reflow"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        section = context.recipe.observation.values()
        self.epochs, self.lr = section["reflow"], section["reflow_lr"]
        self.first, self.warmup = context.recipe.training.epochs, context.recipe.training.warmup

    @property
    def observation(self) -> PixelFlow:
        """The observation with averaged weights."""
        found = self.context.average.observation
        assert isinstance(found, PixelFlow)
        return found

    def continues(self, earlier: Recipe) -> bool:
        """Return whether an earlier recipe has the same flow, trained as long."""
        return earlier.training.epochs == self.first

    def begin(self, *, resumed: bool) -> None:
        """Keep the trained flow as the teacher; a state that is restored afterwards has the tuned one."""
        self.teacher = copy.deepcopy(self.observation).eval().requires_grad_(False)
        trained = copy.deepcopy(self.observation).requires_grad_(True)
        trained.compute_in(self.context.precision)
        self.teacher.compute_in(self.context.precision)
        self.parts = {"observation": (trained, self.observation)}

        def loss(*batch: Tensor) -> tuple[Tensor, Tensor]:
            start, end, conditions, t = batch
            point = torch.lerp(start, end, t.view(-1, 1, 1, 1))
            found = (trained.velocity(t, point, conditions) - (end - start)).square().mean()
            return found, found.detach()

        self._start(trained, self.observation, loss, self._settings(), seed=5)

    @torch.no_grad()
    def arguments(self, images: Tensor, numbers: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return noises, the states that they flow to, their conditions, and times of each part."""
        model, workers = self.context.average, self.context.workers
        count, device = len(images) * workers.count, images.device
        code_noise = workers.part(torch.randn(count, model.dim, generator=self.generator))
        latents = model.sample_posterior(images, noise=code_noise)
        labels = context_labels(self.context)
        one_hot = None
        if labels is not None:
            one_hot = torch.nn.functional.one_hot(labels[numbers].long(), self.observation.classes)
        conditions = model.conditions(latents, one_hot)
        start = workers.part(torch.randn(count, *images.shape[1:], generator=self.generator)).to(device)
        end = self.teacher.solve(start, conditions)
        uniform = torch.rand(2, count, generator=self.generator)
        t = workers.part(torch.where(uniform[0] < AT_NOISE, 0.0, uniform[1])).to(device)
        given = (start, end, conditions, t)
        return list(zip(*(part.chunk(self.context.recipe.training.accumulate) for part in given), strict=True))

    def compilable(self) -> bool:
        """Return whether the compiler takes the loss: on a CPU it makes convolutions no faster."""
        return self.context.device.type != "cpu"

    def row(self, loss: float, figure: float) -> dict[str, Any]:
        """Return the loss."""
        return {"reflow": loss}

    def validate(self) -> dict[str, Any]:
        """Return how far images of one and two evaluations are from those of the teacher."""
        return validate_evaluations(self.context.average, self.teacher, self.context.splits.validation)
