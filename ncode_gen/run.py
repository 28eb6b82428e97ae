"""The run folder: what it holds, written so that nothing is lost or half written, and loaded again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .autoencoder import LatentModel, build_model
from .errors import UserError
from .files import write_atomically, write_json
from .recipe import Recipe

__all__ = [
    "RECIPE",
    "WEIGHTS",
    "describe_environment",
    "find_run",
    "load_recipe",
    "load_run",
    "record_environment",
    "resolve_device",
    "save_weights",
    "shipped",
    "weights_digest",
]

RECIPE, WEIGHTS = "recipe.toml", "weights.safetensors"


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); say auto or cpu") from None
    return device


def describe_environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Return versions, device, commit and seed: what environment.json holds."""
    packages = ("torch", "torchvision", "torchdiffeq", "numpy", "scipy", "scikit-learn")
    source = Path(__file__).parent
    asked = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "ncode_gen": metadata.version("ncode_gen"),
        "commit": asked.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace(f"{Path.cwd()}{os.sep}", ""),
        "seed": seed,
    }


def shipped(folder: str) -> list[Path]:
    """Return the places where `checkpoints` or `models` may be found: here, beside the package, inside it."""
    package = Path(__file__).parent
    return [Path(folder), package.parent / folder, package / "_shipped" / folder]


def record_environment(folder: Path, environment: dict[str, Any], *, resume: bool) -> None:
    """Write environment.json; a resumed run keeps its first one and lists the others below it."""
    path = folder / "environment.json"
    if resume and path.is_file():
        try:
            first = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is damaged; remove it and resume again") from None
        environment = {**first, "resumed": [*first.get("resumed", []), environment]}
    write_json(path, environment)


def find_run(name: str | Path) -> Path:
    """Return the run folder of a name: a path, or a folder in checkpoints/.

    Raises:
        UserError: there is none, or the folder is no run.
    """
    path = Path(name)
    relative = path.relative_to("checkpoints") if path.parts[:1] == ("checkpoints",) else path
    candidates = [path, *(place / relative for place in shipped("checkpoints"))]
    for candidate in candidates:
        if candidate.is_dir():
            for needed in (RECIPE, WEIGHTS):
                if not (candidate / needed).is_file():
                    raise UserError(f"{candidate} is no finished run: it holds no {needed}; train it, or name another")
            return candidate
    raise UserError(f"there is no run folder {path}; train one with python -m ncode_gen.train")


def save_weights(folder: Path, model: LatentModel) -> None:
    """Write the model's weights, with the shape of its images, into a run folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header = {"format": "ncode_gen", "shape": ",".join(map(str, model.shape))}
    write_atomically(folder / WEIGHTS, lambda partial: save_file(tensors, partial, metadata=header))


def load_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder."""
    return Recipe.load(folder / RECIPE)


def load_run(name: str | Path, device: torch.device | str = "cpu") -> LatentModel:
    """Load the model of a run, in eval mode.

    Raises:
        UserError: there is no such run, its weights are damaged, or they belong to another model.
    """
    folder = find_run(name)
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            header, keys = file.metadata() or {}, file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); copy or train it again") from None
    try:
        channels, height, width = (int(side) for side in header["shape"].split(","))
    except (KeyError, ValueError):
        raise UserError(f"{path} was not written by ncode_gen: its header names no image shape") from None
    model = build_model(load_recipe(folder), (channels, height, width))
    model.prior.take_sizes(
        {key.removeprefix("prior."): tensor for key, tensor in tensors.items() if key.startswith("prior.")}
    )
    expected = model.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors or key not in expected or expected[key].shape != tensors[key].shape:
            raise UserError(f"{path} belongs to another model than {folder / RECIPE}: they differ in {key}")
        if tensors[key].is_floating_point() and not bool(torch.isfinite(tensors[key]).all()):
            raise UserError(f"{path} holds a weight in {key} that is not finite; train the model again")
    model.load_state_dict(tensors)
    model.precision = None  # Half precision is for training; scores and pictures are made in float32.
    return model.to(device).eval().requires_grad_(False)


def weights_digest(name: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a run's weights."""
    return hashlib.sha256((find_run(name) / WEIGHTS).read_bytes()).hexdigest()[:16]
