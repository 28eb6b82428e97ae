"""The run folder: what it holds, written so that nothing is lost or half written, and loaded again."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .autoencoder import LatentModel, build_model
from .data import Splits, load_data
from .errors import UserError
from .files import check_links
from .hub import fetch_run, is_repository, upload_run
from .memory import describe
from .paths import user_path
from .recipe import DataRecipe, Recipe
from .records import read_record, write_record
from .splits import FileSplit
from .state import has_state
from .weights import open_weights, write_weights

__all__ = [
    "DATA",
    "ENVIRONMENT",
    "EVALUATION",
    "METRICS",
    "RECIPE",
    "WEIGHTS",
    "computes_in_bf16",
    "describe_environment",
    "find_run",
    "load_recipe",
    "load_run",
    "load_run_data",
    "push",
    "record_environment",
    "record_files",
    "resolve_device",
    "run_identity",
    "save_weights",
    "shipped",
    "use_full_precision",
    "weights_digest",
]

RECIPE, WEIGHTS = "recipe.toml", "weights.safetensors"
METRICS, ENVIRONMENT, EVALUATION = "metrics.jsonl", "environment.json", "evaluation.json"
DATA = "data.json"


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        for kind, there in (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)):
            try:
                if there():
                    torch.zeros(1, device=kind)
                    return torch.device(kind)
            except (RuntimeError, AssertionError) as error:  # a driver that is too old, or a device of somebody else's
                reason = str(error).partition("\n")[0]
                print(f"note: {kind} cannot be used here ({reason}); the CPU is", file=sys.stderr)
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); say auto or cpu") from None
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself; a CPU that imitates it is slower than in float32."""
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def use_full_precision() -> None:
    """Let CUDA compute in float32 where it may round to TF32 (10 bits) by default: for scores, not for training."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def describe_environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Return versions, device, commit and seed: what environment.json holds; None for what cannot be found out."""
    packages = ("torch", "torchvision", "torchdiffeq", "numpy", "scipy", "scikit-learn")
    return {
        "ncode_gen": _version("ncode_gen"),
        "commit": _own_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "command": _command(),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a package that was put there without an installer
        return None


def _device_name(device: torch.device) -> str:
    try:
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    except (RuntimeError, AssertionError):
        return device.type


def _command() -> str:
    said = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with contextlib.suppress(OSError):  # the folder may have been removed
        said = said.replace(f"{Path.cwd()}{os.sep}", "")
    return said


def _own_commit() -> str | None:
    """Return the commit of this package's own repository; None where it is installed, wherever that lies."""
    source = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, errors="replace")
        return done.stdout.strip()

    try:
        # Inside somebody else's repository, such as in an environment kept there, this file is none of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != source.parent.resolve():
            return None
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def load_run_data(folder: Path, recipe: DataRecipe, workers: int) -> Splits:
    """Load the images of a run, with the run's own split where they are a folder of pictures.

    Args:
        folder: run folder; one that holds no weights and no state is new, and its pictures are split anew.
        recipe: which set, and where it lies now.
        workers: reading processes.

    Raises:
        UserError: as for `load_data`, or what the run recorded of its pictures is damaged.
    """
    if (folder / DATA).is_file():
        return load_data(recipe, workers, FileSplit.from_record(read_record(folder / DATA), folder / DATA))
    return load_data(recipe, workers, earlier=(folder / WEIGHTS).exists() or has_state(folder))


def record_files(folder: Path, splits: Splits) -> None:
    """Write which pictures of a folder a run learns from, into data.json; nothing for sets with their own splits.

    What was written when the run began stays.

    Raises:
        UserError: it cannot be written.
    """
    if splits.files is not None and not (folder / DATA).exists():
        write_record(folder / DATA, splits.files.to_record())


def shipped(folder: str) -> list[Path]:
    """Return the places where `checkpoints` or `models` may be found: here, beside the package, inside it."""
    package = Path(__file__).parent
    return [Path(folder), package.parent / folder, package / "_shipped" / folder]


def run_identity(folder: Path) -> str | None:
    """Return the identity that a run was given when its training began; None if its folder says none.

    Raises:
        UserError: environment.json is damaged.
    """
    try:
        found = read_record(folder / ENVIRONMENT).get("run")
    except FileNotFoundError:
        return None
    return None if found is None else str(found)


def record_environment(folder: Path, environment: dict[str, Any], identity: str) -> None:
    """Write environment.json; a run that goes on keeps its first one, and lists the others below it.

    Raises:
        UserError: it cannot be written, or what stands there is damaged.
    """
    path = folder / ENVIRONMENT
    if run_identity(folder) == identity:
        first = read_record(path)
        environment = {**first, "resumed": [*first.get("resumed", []), environment]}
    write_record(path, {"run": identity, **environment})


def find_run(name: str | Path) -> Path:
    """Return the run folder of a name: a path, a folder in checkpoints/, or USER/NAME on the Hugging Face Hub.

    Raises:
        UserError: there is none, or the folder is no run.
    """
    path = user_path(name)
    relative = path.relative_to("checkpoints") if path.parts[:1] == ("checkpoints",) else path
    candidates = [path, *(place / relative for place in shipped("checkpoints"))]
    found = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if found is None and is_repository(str(name)):
        found = fetch_run(str(name))
    if found is None:
        raise UserError(f"there is no run folder {path}; train one with python -m ncode_gen.train")
    for needed in (RECIPE, WEIGHTS):
        if not (found / needed).is_file():
            raise UserError(f"{found} is no finished run: it holds no {needed}; train it, or name another")
    check_links(found)
    return found


def save_weights(folder: Path, model: LatentModel, recipe: Recipe, epochs: int, *, half: bool = False) -> None:
    """Write the model's weights, with the shape of its images, its recipe and its epochs, into a run folder.

    Args:
        folder: run folder.
        model: the model.
        recipe: its recipe.
        epochs: how many epochs it was trained.
        half: whether to round numbers to float16, for a file of half the size; models always calculate in float32.

    Raises:
        UserError: the folder cannot be written, or a number is too large for float16.
    """
    tensors = model.state_dict()
    if half:
        tensors = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
        for name, value in tensors.items():
            if not bool(value.isfinite().all()):
                raise UserError(f"{name} holds a number too large for float16; keep the weights in float32")
    write_weights(folder / WEIGHTS, tensors, model.shape, recipe.to_toml(), epochs)


def load_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder."""
    return Recipe.load(folder / RECIPE, stored=True)


def load_run(name: str | Path, device: torch.device | str = "cpu") -> LatentModel:
    """Load the model of a run, in eval mode.

    Args:
        name: a run folder, a folder in checkpoints/, or USER/NAME on the Hugging Face Hub (which needs the extra "hub";
            what was fetched once needs no network).
        device: where the model is to be.

    Raises:
        UserError: there is no such run, its weights are damaged, or they belong to another model.
    """
    folder = find_run(name)
    recipe = load_recipe(folder)
    with open_weights(folder / WEIGHTS) as stored:
        stored.check_recipe(recipe.to_toml(), folder / RECIPE)
        # Nothing is allocated for this, so that a recipe of any size can be compared with the file first.
        described = describe(recipe, stored.shape)
        described.prior.take_sizes(
            {
                key.removeprefix("prior."): torch.empty(size, device="meta")
                for key, size in stored.sizes.items()
                if key.startswith("prior.")
            }
        )
        expected = {key: tuple(value.shape) for key, value in described.state_dict().items()}
        for key in sorted(expected.keys() | stored.sizes.keys()):
            if expected.get(key) != stored.sizes.get(key):
                raise UserError(f"{stored.path} belongs to another model than {folder / RECIPE}: they differ in {key}")
        tensors = stored.read()
    model = build_model(recipe, stored.shape)
    model.load_state_dict(tensors)
    model.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest
    model.precision = None  # Half precision is for training; scores and pictures are made in float32.
    return model.to(device).eval().requires_grad_(False)


def push(run: str | Path, name: str, *, private: bool = False) -> str:
    """Put a finished run on the Hugging Face Hub (needs the extra "hub").

    Args:
        run: run folder.
        name: USER/NAME of the repository, made if absent.
        private: whether others cannot see it.

    Returns:
        Its address.

    Raises:
        UserError: the run is not finished or was spoiled, the extra is not installed, or the Hub refuses.
    """
    load_run(run)
    return upload_run(find_run(run), name, private=private)


def weights_digest(name: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 that the header of a run's weights holds."""
    with open_weights(find_run(name) / WEIGHTS) as stored:
        return stored.digest[:16]
