"""Recipes that earlier versions wrote into run folders, in the keys of today."""

from collections.abc import Mapping
from typing import Any

from .registry import find_kind

# Keys by section, and what they are called now.
RENAMED = {
    "objective": {"noisy_targets": "stochastic_targets", "discrepancy": "mmd_weight"},
    "prior": {"updates": "iterations"},
    "refiner": {"stage": "alpha", "centred": "zero_mean_residual", "rate": "lr"},
    "training": {"rate": "lr", "decay": "weight_decay", "clip": "grad_clip"},
}
VALUES = {"gains": "film"}


def is_earlier(values: Mapping[str, Any]) -> bool:
    """Return whether a recipe has the keys of an earlier version; every one of these wrote one of these two."""
    tables = {name: table for name, table in values.items() if isinstance(table, Mapping)}
    return "likelihood" in tables.get("decoder", {}) or "rate" in tables.get("training", {})


def translated(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored recipe in the keys of today; keys without effect, which earlier versions wrote too, are left out.

    >>> translated({"flow": {"loop": "none", "hidden": 32}, "decoder": {"likelihood": "bernoulli"}})["flow"]
    {'loop': 'none'}
    """
    if not is_earlier(values):
        return values
    found: dict[str, Any] = {
        name: {RENAMED.get(name, {}).get(key, key): value for key, value in table.items()}
        if isinstance(table, Mapping)
        else table
        for name, table in values.items()
    }
    tables = {name: table for name, table in found.items() if isinstance(table, dict)}
    flow, prior = tables.get("flow", {}), tables.get("prior", {})
    for key in ("control", "feedback_control"):
        if flow.get(key) in VALUES:
            flow[key] = VALUES[flow[key]]
    if flow.get("loop") == "iaf":
        found["posterior"] = {"kind": "iaf", "transforms": flow.get("steps", 4)}
        found["posterior"] |= {key: flow[key] for key in ("hidden", "layers") if key in flow}
        found["flow"] = {"loop": "none"}
    if prior.pop("joint", False):
        prior |= {"kind": "joint-flow", "log_det_by": flow.get("log_det_by", "divergence")}
    if "likelihood" in tables.get("decoder", {}):
        found["likelihood"] = {"kind": found["decoder"].pop("likelihood")}
    refiner = found.pop("refiner", {})
    if refiner.get("kind", "none") != "none":
        found["observation"] = {**refiner, "kind": "refined"}
    if "workers" in tables.get("training", {}):
        found.setdefault("data", {})["workers"] = found["training"].pop("workers")
    return {name: _known(name, table) if isinstance(table, dict) else table for name, table in found.items()}


def _known(section: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table without the keys that its kind does not have."""
    tag = {"data": "name", "flow": "loop"}.get(section, "kind")
    kinds = {"data": "digits", "flow": "open", "objective": "elbo", "prior": "mixture", "likelihood": "gaussian"}
    if section in ("latent", "training"):
        return table
    kind = table.get(tag, kinds.get(section, "auto"))
    keys = find_kind(section, kind, "an earlier recipe").names()
    return {key: value for key, value in table.items() if key == tag or key in keys}
