"""A phase of training: what is trained, by which loss, on which batches, along which schedule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Recipe
from ..data import Splits
from ..distributions import LatentModel
from ..runtime.seeding import seeded
from ..runtime.workers import Workers, distribute_like, full_tensor
from .compiled import CompiledLoss, Loss
from .step import Average, Step, StepSettings, learning_rate

COMPILE_FROM, COMPILED_AFTER = 5000, 20


@dataclass
class Progress:
    """Where a phase stands, in images, so that batch size and processes may change from here on.

    Attributes:
        epoch: epochs of the phase that are done.
        seen: images of this epoch that are done, in the epoch's order.
        images: images in the training set of this epoch.
        step: updates that were made in all phases.
        begun: updates that were made before this phase.
        batches: batches of this epoch that are done.
        sums: loss, nats, norm of the gradient and skipped batches, summed over the epoch so far.
        seconds: time that the epoch took so far.
    """

    epoch: int = 0
    seen: int = 0
    images: int = 0
    step: int = 0
    begun: int = 0
    batches: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    seconds: float = 0.0


@dataclass(frozen=True)
class Context:
    """What phases have in common.

    Attributes:
        recipe: the recipe.
        splits: the images.
        average: the model with averaged weights, which all phases work on.
        precision: dtype of the layers that are trained under automatic casting; None for float32.
        device: where the model is.
        workers: the processes that share each batch.
        batch: images of an update, all processes together.
        log: takes one line for the user.
        callback: called now and then in long work; what it raises ends the work.
        quiet: whether to show no progress.
    """

    recipe: Recipe
    splits: Splits
    average: LatentModel
    precision: torch.dtype | None
    device: torch.device
    workers: Workers
    batch: int
    log: Callable[[str], None]
    callback: Callable[[], None]
    quiet: bool


class Phase(ABC):
    """One part of training.

    Args:
        context: what phases have in common.

    Attributes:
        name: name of the phase, in states and messages.
        parts: what is trained and its average, by their dotted path in the model.
        epochs: how many epochs it has.
        first: epochs of the phases before it.
        reports: whether its epochs are rows of metrics.jsonl.
        lr: peak learning rate.
        warmup: share of the phase over which the learning rate rises.
        step: one update; None where there is none.
        at: where it stands.
        ready: whether it has begun.
    """

    ready = False
    name: str
    parts: dict[str, tuple[nn.Module, nn.Module]]
    epochs: int
    first: int
    reports = True
    lr: float
    warmup: float
    step: Step | None = None
    generator: torch.Generator

    def __init__(self, context: Context) -> None:
        self.context, self.at = context, Progress()
        self.images, self.batch = len(context.splits.train), context.batch

    @property
    def shared(self) -> bool:
        """Whether all processes take part; else the main one alone."""
        return True

    @property
    def per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.images // self.batch

    @abstractmethod
    def begin(self, *, resumed: bool) -> None:
        """Make what is trained; a state that is restored afterwards says how far it is, if the phase is resumed."""

    @abstractmethod
    def batches(self, sizes: list[list[int]]) -> Iterator[tuple[list[tuple[Tensor | None, ...]], int]]:
        """Yield the arguments of the loss for each part of the batches that are to come, and the images of all.

        Args:
            sizes: the sizes of the batches to come, equal ones together.
        """

    def validate(self) -> dict[str, Any]:
        """Return scores of held-out images, or whatever else is watched."""
        return {}

    def sizes(self) -> list[list[int]]:
        """Return the sizes of the batches of the epoch that are still to come, equal ones together.

        The last one is smaller where the epoch began with another batch, so that no image is lost by the change.
        """
        recipe = self.context.recipe
        full, rest = divmod(max(0, self.per_epoch * self.batch - self.at.seen), self.batch)
        rest -= rest % (self.context.workers.count * recipe.training.accumulate)
        if rest < recipe.objective.least_batch:
            rest = 0
        return [sizes for sizes in ([self.batch] * full, [rest]) if sum(sizes)]

    def summary(self, sums: list[float], seconds: float) -> dict[str, Any]:
        """Return the row of metrics.jsonl of an epoch that has just been trained, without its validation."""
        at, count = self.at, max(1.0, self.at.batches - sums[3])
        loss, figure, norm = (value / count for value in sums[:3])
        row = {"step": at.step, "epoch": self.first + at.epoch + 1, "images": at.seen, **self.row(loss, figure)}
        return row | {
            "gradient_norm": norm,
            "skipped": int(sums[3]),
            "images_per_second": at.seen / seconds,
            "seconds": seconds,
            "lr": self.current_lr(1),
        }

    def row(self, loss: float, figure: float) -> dict[str, Any]:
        """Return the numbers of an epoch that have names of this phase's own."""
        return {"loss": loss}

    def end(self) -> None:
        """Do what remains when all epochs are done."""
        return

    def continues(self, earlier: Recipe) -> bool:
        """Return whether a state that was made with an earlier recipe is one of this phase.

        Raises:
            UserError: it is not, and it cannot begin anew either.
        """
        return True

    def _start(
        self,
        trained: nn.Module,
        averaged: nn.Module,
        loss: Loss,
        settings: StepSettings,
        *,
        seed: int,
        ema: float | None = None,
    ) -> None:
        """Set up the update of what is trained, and its average."""
        context, workers = self.context, self.context.workers if self.shared else Workers()
        steps, compiled = self.per_epoch * self.epochs, None
        if self._compiles(steps):
            calls = min(COMPILED_AFTER, steps // 20) * settings.accumulate
            graphs = context.device.type == "cuda" and settings.accumulate == 1 and workers.count == 1
            compiled = CompiledLoss(loss, context.log, calls, list(trained.parameters()), graphs=graphs)
        self.step = Step(trained, loss, settings, compiled=compiled, workers=workers)
        self.average = Average(averaged, trained, self._decay() if ema is None else ema)
        self.generator = seeded(context.recipe.seed + seed)

    def _decay(self) -> float:
        """Return the decay of the moving average, a step of the batch."""
        training = self.context.recipe.training
        return float(0.5 ** (self.batch / training.ema_images)) if training.ema_images else training.ema

    def _compiles(self, steps: int) -> bool:
        setting = self.context.recipe.training.compile
        long = setting == "auto" and self.compilable() and steps >= COMPILE_FROM
        return not self.context.workers.sharded and (setting == "on" or long)

    def compilable(self) -> bool:
        """Return whether the loss is one that the compiler takes whole."""
        return True

    def position(self, back: int = 0) -> tuple[float, int]:
        """Return how far the phase is, or was some batches before, and how long it is, in batches of the present size.

        Both come from images, so that a run that goes on with another batch goes on along the same schedule.
        """
        done = self.at.epoch * self.per_epoch + min(self.at.seen / self.batch, self.per_epoch)
        return max(0.0, done - back), self.epochs * self.per_epoch

    def current_lr(self, back: int = 0) -> float:
        """Return the learning rate, or that of some batches before."""
        return learning_rate(self.lr, self.warmup, *self.position(back))

    def update(self, parts: list[tuple[Tensor | None, ...]]) -> Tensor:
        """Make one update; see `Step`."""
        assert self.step is not None
        found = self.step(parts, self.current_lr())
        self.average.update(self.at.step - self.at.begun)
        return found

    def state(self) -> dict[str, Any]:
        """Return all that changes in this phase; processes that share the model must all ask."""
        return {
            "trained": {path: full_tensor(dict(trained.state_dict())) for path, (trained, _) in self.parts.items()},
            "average": {path: average.state_dict() for path, (_, average) in self.parts.items()},
            "progress": asdict(self.at),
        } | (self._step_state(self.step) if self.step is not None else {})

    def _step_state(self, step: Step) -> dict[str, Any]:
        moments = full_tensor(step.optimiser.state_dict()["state"])
        return {
            # By name, which holds whatever the order of the weights.
            "moments": {
                name: moments[number] for number, name in enumerate(self._trained_names()) if number in moments
            },
            "scaler": step.scaler.state_dict(),
            "skipped_in_a_row": step.skipped_in_a_row,
            "generator": self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it belongs to another model.
        """
        for path, (trained, average) in self.parts.items():
            own, held = trained.state_dict(), state["trained"].get(path, {})
            trained.load_state_dict(
                {name: distribute_like(value, own.get(name, value)) for name, value in held.items()}
            )
            average.load_state_dict(state["average"].get(path, {}))
        self.at = Progress(**state["progress"])
        if self.step is None or self.at.epoch >= self.epochs:
            return
        self._restore_moments(self.step.optimiser, state["moments"])
        if state["scaler"] and self.step.scaler.is_enabled():  # another precision begins with its own factor
            self.step.scaler.load_state_dict(state["scaler"])
        self.step.skipped_in_a_row.copy_(state["skipped_in_a_row"])
        self.generator.set_state(state["generator"])

    def _trained_names(self) -> list[str]:
        """Return the names of what the optimiser updates, in its order."""
        assert self.step is not None
        names = {
            id(parameter): f"{path}.{name}"
            for path, (trained, _) in self.parts.items()
            for name, parameter in trained.named_parameters()
        }
        return [names[id(parameter)] for group in self.step.optimiser.param_groups for parameter in group["params"]]

    def _restore_moments(self, optimiser: torch.optim.Optimizer, moments: dict[str, dict[str, Tensor]]) -> None:
        # Which settings hold is for the recipe to say, which may have changed since.
        whole = optimiser.state_dict()
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for number, (name, parameter) in enumerate(zip(self._trained_names(), parameters, strict=True)):
            if name in moments:
                held = moments[name]
                if any(value.dim() and value.shape != parameter.shape for value in held.values()):
                    raise ValueError(f"the moments of {name} have another shape than the weights")
                whole["state"][number] = {key: distribute_like(value, parameter) for key, value in held.items()}
        optimiser.load_state_dict(whole)
