"""States that earlier versions wrote, in the form of today."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..config import Recipe
from ..runfolder.weights import renamed

__all__ = ["translated_state"]


def translated_state(state: dict[str, Any], recipe: Recipe, images: int) -> dict[str, Any]:
    """Return a state with an entry for each phase; earlier versions had one flat state and a flag.

    Args:
        state: the state.
        recipe: its recipe.
        images: images in the training set.
    """
    if "phases" in state:
        return state
    refining = bool(state.get("refining", False))
    average = _nested(renamed(state["average"]))
    trained = {"observation.refiner": _refiner(state["model"])} if refining else _nested(renamed(state["model"]))
    held = {key: state[key] for key in ("optimiser", "scaler", "skipped_in_a_row", "generator")}
    current = {**held, "trained": trained, "average": average, "progress": _progress(state, recipe, images)}
    if not refining:
        return {**state, "phases": {"model": current}}
    done = {"epoch": recipe.training.epochs, "step": current["progress"]["begun"]}
    model = {"trained": average, "average": average, "progress": done}
    return {**state, "phases": {"model": model, "observation": current}}


def _progress(state: dict[str, Any], recipe: Recipe, images: int) -> dict[str, Any]:
    """Return where a state stood: epochs of the phase; earlier versions counted the batches of an epoch."""
    held, training = dict(state["progress"]), recipe.training
    refining = bool(state.get("refining", False))
    batch = max(1, min(training.batch, images // training.accumulate * training.accumulate))
    if "seen" not in held:
        count = int(held.pop("batch"))
        begun = images // batch * training.epochs if refining else 0
        held |= {"seen": count * batch, "images": images, "begun": begun, "batches": count}
    if refining:
        held["epoch"] -= training.epochs
    return held


def _refiner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "observation.refiner."
    return {
        name.removeprefix(prefix): value
        for name, value in renamed({f"refiner.{name}": value for name, value in tensors.items()}).items()
    }


def _nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return weights by the dotted path of their module: that of the model's parts, and of its observation's."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        depths = (1, 2) if name.startswith("observation.") else (1,)
        for depth in depths:
            parts = name.split(".")
            found.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = value
    return found
