"""How many epochs of the colour model fit into a time here: `python eval/gpu_epochs.py FILE.npz MINUTES OUT.json`.

Trains a few hundred compiled steps, prints the epochs, and writes images a second and the share of the chip's
arithmetic that a step uses (operations of the layers, counted by torch, three times the forward pass, over PEAK).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ncode_gen.config import Recipe, section
from ncode_gen.data import load_data
from ncode_gen.distributions import build_model
from ncode_gen.runtime.files import write_json
from ncode_gen.runtime.workers import ALONE
from ncode_gen.training import train

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12}  # dense bfloat16, operations a second
BATCH, MEASURED = 512, 40_960


def recipe_of(data: str) -> Recipe:
    """Return the colour model as `gpu.sh` trains it."""
    recipe = Recipe.load(Path(__file__).parent.parent / "models" / "arrays" / "ncode-flow-labels.toml")
    observation: Any = {"width": 96}
    training: Any = {"batch": BATCH, "compile": "on", "epochs": 3}
    return dataclasses.replace(
        recipe,
        data=section("data", **{**recipe.data.used(), "root": data, "limit": MEASURED, "classes": ["auto"]}),
        observation=dataclasses.replace(recipe.observation, **observation),
        training=dataclasses.replace(recipe.training, **training),
        prior=section("prior", kind="normal"),
    )


def operations(recipe: Recipe, shape: tuple[int, int, int]) -> float:
    """Return the operations of one image in training: forward, and twice that backward."""
    named = dataclasses.replace(recipe, data=section("data", name="digits"))
    model = build_model(named, shape)
    objective = named.objective.build(model)
    images = torch.rand(2, *shape)
    drawn = objective.draw(images, None, torch.Generator(), ALONE)
    with FlopCounterMode(display=False) as counter:
        objective(images, torch.randn(2, 1, model.dim), torch.tensor(0.1), *drawn)
    return 1.5 * float(counter.get_total_flops())


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("minutes", type=float)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(options.data)
    splits = load_data(recipe.data)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train(recipe, splits, Path(folder), device=device, quiet=True)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    speed = max(row["images_per_second"] for row in rows[1:])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    peak = next((value for key, value in PEAK.items() if key in name), None)
    used = operations(recipe, splits.train.shape) * speed
    whole = len(load_data(dataclasses.replace(recipe.data, limit=0)).train)
    epochs = max(1, math.floor(60 * options.minutes * speed / whole))
    write_json(
        options.out,
        {
            "device": name,
            "images_per_second": round(speed),
            "operations_per_second": used,
            "share_of_peak": None if peak is None else used / peak,
            "seconds_to_measure": round(time.perf_counter() - started),
            "epochs": epochs,
        },
    )
    print(epochs)


if __name__ == "__main__":
    main()
