"""A phase of training that goes over the training images."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime.seeding import seeded
from .phase import Context, Phase
from .step import StepSettings


class ImagePhase(Phase):
    """A phase that goes over the training images."""

    def batches(self, sizes: list[list[int]]) -> Iterator[tuple[list[tuple[Tensor | None, ...]], int]]:
        """Yield the arguments of each part of the batches.

        Seed and epoch decide their order, whatever the batch; images that do not fill the last batch are left out.
        """
        context, at = self.context, self.at
        images, workers = context.splits.train, context.workers
        epoch = self.first + at.epoch
        order = torch.randperm(len(images), generator=seeded(1_000_003 * context.recipe.seed + epoch))
        start = at.seen
        for equal in sizes:
            part = order[start : start + sum(equal)]
            start += len(part)
            mine = workers.part(part.view(len(equal), -1).T).T
            read = images.batches(equal[0] // workers.count, mine.flatten(), context.device)
            for stored, numbers in zip(read, mine, strict=True):
                batch = self._flipped(stored) if context.recipe.data.flip else stored
                yield self.arguments(batch, numbers), len(batch) * workers.count

    def _flipped(self, images: Tensor) -> Tensor:
        """Return images, half of them mirrored left to right."""
        workers = self.context.workers
        chosen = workers.part(torch.rand(len(images) * workers.count, generator=self.generator) < 0.5)
        return torch.where(chosen.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)

    @abstractmethod
    def arguments(self, images: Tensor, numbers: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return the arguments of the loss for each part of a batch; all random numbers are made here.

        They are those of the whole batch, of which each process takes its own part, so that one process and several
        take the same step.

        Args:
            images: this process's part of the batch, (m, C, H, W) in [0, 1].
            numbers: indices of the images in the training set, (m,), on the CPU.
        """

    def _settings(self) -> StepSettings:
        training = self.context.recipe.training
        return StepSettings(
            training.weight_decay, training.grad_clip, training.accumulate, scaled=training.precision == "fp16"
        )


def context_labels(context: Context) -> Tensor | None:
    """Return the classes of the training images, (n,), where they condition the model."""
    return context.splits.train.labels if context.recipe.data.classes else None
