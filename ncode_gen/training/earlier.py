"""States that earlier versions wrote, in the form of today."""

from collections.abc import Container
from typing import Any

from torch import Tensor

from ..config import Recipe
from ..runfolder.weights import renamed


def translated_state(state: dict[str, Any], recipe: Recipe, images: int, parameters: Container[str]) -> dict[str, Any]:
    """Return a state with an entry for each phase; earlier versions had one flat state and a flag.

    Args:
        state: the state.
        recipe: its recipe.
        images: images in the training set.
        parameters: names of the model's weights, as against what is kept beside them.
    """
    if "phases" in state:
        return state
    refining = bool(state.get("refining", False))
    average = _nested(renamed(state["average"]))
    own = {f"refiner.{name}": value for name, value in state["model"].items()} if refining else state["model"]
    tensors = renamed(own)
    left = (
        ()
        if refining
        else ("observation.refiner.", "prior.")
        if recipe.prior.fitted_after
        else ("observation.refiner.",)
    )
    names = [name for name in tensors if name in parameters and not name.startswith(left)]
    # Numbers came last in the optimiser.
    names.sort(key=lambda name: tensors[name].dim() == 0)
    moments = {names[number]: value for number, value in state["optimiser"]["state"].items()}
    held = {key: state[key] for key in ("scaler", "skipped_in_a_row", "generator")}
    held |= {"moments": moments, "progress": _progress(state, recipe, images)}
    current = {**held, "trained": _nested(tensors), "average": average}
    if not refining:
        return {**state, "phases": {"model": current}}
    done = {"epoch": recipe.training.epochs, "step": current["progress"]["begun"]}
    model = {"trained": average, "average": average, "progress": done, "moments": None}
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


def _nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return weights by the dotted path of their module: of the model's parts, and of the parts of these."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parts = name.split(".")
        for depth in (1, 2):
            found.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = value
    return found
