"""All that changes while a model is trained, and how a saved state of it is taken over."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import LatentModel
from .errors import UserError
from .state import LoadedState, random_states, restore_random_states
from .step import Step
from .workers import shared_like, whole

__all__ = ["Progress", "Training", "of_another_model", "take_weights"]


@dataclass
class Progress:
    """Where training stands: the next step is batch `batch` of epoch `epoch`.

    Attributes:
        sums: loss, nats, norm of the gradient and skipped batches, summed over the epoch so far.
        seconds: time that the epoch took so far.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    seconds: float = 0.0


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

    def restore(self, state: LoadedState, folder: Path) -> None:
        """Take over a state.

        Raises:
            UserError: it belongs to another model than the recipe.
        """
        try:
            for held, key in ((self.model, "model"), (self.average, "average")):
                take_weights(held, state[key], refined=self.refining)
            self._restore_optimiser(state["optimiser"])
            self.step.scaler.load_state_dict(state["scaler"])
            self.step.skipped_in_a_row.copy_(state["skipped_in_a_row"])
            self.generator.set_state(state["generator"])
            restore_random_states(state["random"])
            self.at = Progress(**state["progress"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise of_another_model(folder, error) from None

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        optimiser = self.step.optimiser
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        moments = {
            number: {key: shared_like(value, parameters[number]) for key, value in held.items()}
            for number, held in state["state"].items()
        }
        optimiser.load_state_dict({**state, "state": moments})


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
