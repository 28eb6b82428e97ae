"""All that changes while a model is trained, and how a saved state of it is taken over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions import LatentModel
from ..errors import UserError
from ..runfolder.state import LoadedState, random_states, restore_random_states
from ..runtime.workers import shared_like, whole
from .step import Step

__all__ = ["Progress", "Training", "of_another_model", "take_weights"]


@dataclass
class Progress:
    """Where training stands, in images, so that batch size and processes may change from here on.

    Attributes:
        epoch: epochs that are done.
        seen: images of this epoch that are done, in the epoch's order.
        images: images in the training set of this epoch.
        step: updates that were made in all.
        begun: updates that were made before this part of training (model, or refiner) began.
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

    @classmethod
    def restored(cls, held: dict[str, Any], images: int, batch: int, begun: int) -> Progress:
        """Return the progress of a state; earlier versions counted the batches of an epoch.

        Args:
            held: what the state holds.
            images: images in the training set.
            batch: images of a batch when the state was written.
            begun: updates before this part of training began, by the recipe of the state.
        """
        if "seen" in held:
            return cls(**held)
        old = dict(held)
        count = int(old.pop("batch"))
        return cls(**old, seen=count * batch, images=images, begun=begun, batches=count)


@dataclass
class Training:
    """All that changes while a model is trained, and so all that a state holds.

    Attributes:
        model: what is trained: a model, or, when that is done, its refiner.
        average: the averaged weights of the whole model.
        step: one update of `model`.
        generator: the random numbers of the steps.
        at: where training stands.
        refining: whether the refiner is trained.
    """

    model: nn.Module
    average: LatentModel
    step: Step
    generator: torch.Generator
    at: Progress
    refining: bool = False

    @property
    def averaged(self) -> nn.Module:
        """The averaged weights of `model`."""
        if not self.refining:
            return self.average
        assert self.average.refiner is not None
        return self.average.refiner

    def state(self) -> dict[str, Any]:
        """Return the state; processes that share the model must all ask."""
        return {
            "model": whole(dict(self.model.state_dict())),
            "average": self.average.state_dict(),
            "optimiser": whole(self.step.optimiser.state_dict()),
            "scaler": self.step.scaler.state_dict(),
            "skipped_in_a_row": self.step.skipped_in_a_row,
            "generator": self.generator.get_state(),
            "random": random_states(),
            "progress": asdict(self.at),
            "refining": self.refining,
        }

    def restore(self, state: LoadedState, folder: Path, progress: Callable[[dict[str, Any]], Progress]) -> None:
        """Take over a state.

        Args:
            state: the state.
            folder: its run folder, for messages.
            progress: reads where training stood.

        Raises:
            UserError: it belongs to another model than the recipe.
        """
        try:
            for held, key in ((self.model, "model"), (self.average, "average")):
                take_weights(held, state[key], refined=self.refining)
            self._restore_optimiser(state["optimiser"])
            if state["scaler"] and self.step.scaler.is_enabled():  # another precision begins with its own factor
                self.step.scaler.load_state_dict(state["scaler"])
            self.step.skipped_in_a_row.copy_(state["skipped_in_a_row"])
            self.generator.set_state(state["generator"])
            restore_random_states(state["random"])
            self.at = progress(state["progress"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise of_another_model(folder, error) from None

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        optimiser = self.step.optimiser
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        moments = {
            number: {key: shared_like(value, parameters[number]) for key, value in held.items()}
            for number, held in state["state"].items()
        }
        # Which settings hold is for the recipe to say, which may have changed since.
        own = [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]
        optimiser.load_state_dict({**state, "state": moments})
        for group, settings in zip(optimiser.param_groups, own, strict=True):
            group.update(settings)


def of_another_model(folder: Path, error: Exception) -> UserError:
    """Return what to say where a state in `folder` does not fit its recipe."""
    reason = str(error).strip().splitlines()[-1].strip()
    return UserError(f"the state in {folder} belongs to another model than its recipe ({reason})")


def take_weights(held: nn.Module, trained: dict[str, Tensor], *, refined: bool) -> None:
    """Take over weights but those that are fitted after training, so that a run may be resumed with others of these.

    Args:
        held: a model, or a refiner.
        trained: the weights.
        refined: whether those of the refiner are taken too.
    """
    own = held.state_dict()
    if isinstance(held, LatentModel):
        fresh = (*(["prior."] if held.prior.fits else []), *([] if refined else ["refiner."]))
        trained = {name: value for name, value in trained.items() if not name.startswith(fresh)}
        trained |= {name: value for name, value in own.items() if name.startswith(fresh)}
    held.load_state_dict({name: shared_like(value, own.get(name, value)) for name, value in trained.items()})
