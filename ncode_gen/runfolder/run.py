"""The run folder: what it holds, written so that nothing is lost or half written, and loaded again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import DataSection, Recipe, load_plugins
from ..data import Splits, load_data
from ..data.splits import FileSplit
from ..distributions import LatentModel, build_model, describe
from ..errors import UserError
from ..runtime.files import check_links
from ..runtime.paths import bundled, user_path
from .hub import fetch_run, is_repository, upload_run
from .records import read_record, write_record
from .state import has_state
from .weights import open_weights, write_weights

RECIPE, WEIGHTS = "recipe.toml", "weights.safetensors"
METRICS, ENVIRONMENT, EVALUATION = "metrics.jsonl", "environment.json", "evaluation.json"
DATA = "data.json"


def load_run_data(folder: Path, section: DataSection) -> Splits:
    """Load the images of a run, with the run's own split where they are a folder of pictures.

    Args:
        folder: run folder; one that holds no weights and no state is new, and its pictures are split anew.
        section: which set, and where it lies now.

    Raises:
        UserError: as for `load_data`, or what the run recorded of its pictures is damaged.
    """
    if (folder / DATA).is_file():
        return load_data(section, FileSplit.from_record(read_record(folder / DATA), folder / DATA))
    return load_data(section, earlier=(folder / WEIGHTS).exists() or has_state(folder))


def record_files(folder: Path, splits: Splits) -> None:
    """Write which pictures of a folder a run learns from, into data.json; nothing for sets with their own splits.

    What was written when the run began stays.

    Raises:
        UserError: it cannot be written.
    """
    if splits.files is not None and not (folder / DATA).exists():
        write_record(folder / DATA, splits.files.to_record())


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
        UserError: it cannot be written, or the file there is damaged.
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
    candidates = [path, *(place / relative for place in bundled("checkpoints"))]
    found = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if found is None and is_repository(str(name)):
        found = fetch_run(str(name))
    if found is None:
        remedy = "train one with python -m ncode_gen.train"
        if relative != path:
            remedy = "an installed package has the digits model only; name a folder in a clone, or USER/NAME"
        raise UserError(f"there is no run folder {path}; {remedy}")
    for needed in (RECIPE, WEIGHTS):
        if not (found / needed).is_file():
            raise UserError(f"{found} is not a finished run: it holds no {needed}; train it, or name another")
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


def load_run(name: str | Path, device: torch.device | str = "cpu", *, plugins: Sequence[str] = ()) -> LatentModel:
    """Load the model of a run, in eval mode.

    Args:
        name: a run folder, a folder in checkpoints/, or USER/NAME on the Hugging Face Hub (which needs the extra "hub";
            what was fetched once needs no network).
        device: where the model is put.
        plugins: modules, or paths of Python files, with components of the user's own that the run needs; a run folder
            by itself makes the program import nothing.

    Raises:
        UserError: there is no such run, its weights are damaged, or they belong to another model.
    """
    load_plugins(plugins)
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
    model.compute_in(None)  # Half precision is for training; scores and pictures are made in float32.
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
        UserError: the run is not finished or is damaged, the extra is not installed, or the Hub refuses.
    """
    load_run(run)
    return upload_run(find_run(run), name, private=private)


def weights_digest(name: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 that the header of a run's weights holds."""
    with open_weights(find_run(name) / WEIGHTS) as stored:
        return stored.digest[:16]
