"""Runs on the Hugging Face Hub: fetched by name, from its cache where they are held, and put there."""

import re
from pathlib import Path
from typing import Any

from ..errors import UserError

# What a run is made of; a repository may hold anything else, and none of it is fetched.
FILES = ("recipe.toml", "weights.safetensors", "environment.json", "evaluation.json", "metrics.jsonl", "README.md")
PICTURES = ("gallery/*.png", "gallery/*.gif", "gallery/*.pdf", "gallery/*.svg", "gallery/*.html")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
OUR_FOLDERS = ("runs", "checkpoints", "models")


def is_repository(name: str) -> bool:
    """Return whether a name can be one of the Hub's, USER/NAME.

    >>> is_repository("someone/mnist-ncode-open"), is_repository("runs/a"), is_repository("../a")
    (True, False, False)
    """
    return NAME.fullmatch(name) is not None and name.split("/", maxsplit=1)[0] not in OUR_FOLDERS


def fetch_run(name: str) -> Path:
    """Return the local folder of a repository USER/NAME, fetched if need be; what the cache holds needs no network.

    Raises:
        UserError: the extra "hub" is not installed, or the Hub cannot be reached or has no such repository.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f'there is no run folder {name}; to look for it on the Hugging Face Hub: pip install "ncode_gen[hub]"'
        ) from None
    wanted: dict[str, Any] = {"repo_id": name, "allow_patterns": [*FILES, *PICTURES]}
    try:
        return Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:  # of whatever library it speaks HTTP with
        raise UserError(
            f"there is no run folder {name}, nor could it be fetched from the Hugging Face Hub ({_reason(error)})"
        ) from None


def upload_run(folder: Path, name: str, *, private: bool) -> str:
    """Put a run folder into a repository USER/NAME, made if absent; return its address.

    Raises:
        UserError: the extra "hub" is not installed, or the Hub refuses.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError('to push a run, pip install "ncode_gen[hub]"') from None
    if not is_repository(name):
        raise UserError(f"{name!r} is not the USER/NAME of a repository on the Hugging Face Hub")
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES, *PICTURES])
    except Exception as error:  # of whatever library it speaks HTTP with
        raise UserError(
            f"{folder} could not be put on the Hugging Face Hub as {name} ({_reason(error)}); hf auth login logs in",
            code=1,
        ) from None
    return str(address)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
