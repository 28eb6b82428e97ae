"""Training steps of a recipe outside of a run, for the benchmarks that time them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ncode_gen.config import Recipe
from ncode_gen.data.sets import load_data
from ncode_gen.runtime.workers import ALONE
from ncode_gen.training.image_phase import ImagePhase
from ncode_gen.training.start import Start

MODELS = Path(__file__).parent.parent / "models"
NOWHERE = Path("not-written")


def phase_of(recipe: Recipe, device: torch.device) -> ImagePhase:
    """Return the phase that a recipe trains longest, ready for its first step; nothing is written."""
    splits = load_data(recipe.data)
    start = Start(recipe, splits, NOWHERE, device, lambda: None, quiet=True, workers=ALONE)
    phase = start.phases[1 if recipe.observation.phase_epochs else 0]
    assert isinstance(phase, ImagePhase)
    phase.begin(resumed=False)
    return phase


def step_of(
    name: str, root: str, device: torch.device | None = None, compiled: Literal["on", "off"] = "on"
) -> Callable[[], Tensor]:
    """Return a function that takes one whole training step of a recipe, on the same batch each time.

    Args:
        name: the recipe, DATA/NAME in models/.
        root: folder of the image sets.
        device: where to train; the CPU if None.
        compiled: whether the step is compiled.
    """
    recipe = Recipe.load(MODELS / f"{name}.toml")
    training = dataclasses.replace(recipe.training, compile=compiled)
    recipe = dataclasses.replace(recipe, data=recipe.data.at(root), training=training)
    phase = phase_of(recipe, device or torch.device("cpu"))
    images, numbers = phase.context.splits.train.first(phase.batch, phase.context.device), torch.arange(phase.batch)

    def once() -> Tensor:
        phase.at.step += 1
        return phase.update(phase.arguments(images, numbers))

    if compiled == "on":
        assert phase.step is not None and phase.step.compiled is not None
        while phase.step.compiled.calls <= phase.step.compiled.plain_calls:
            once()
    return once
