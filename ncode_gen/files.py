"""Files written so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

__all__ = ["check_links", "check_writable", "remove_partial_files", "write_atomically", "write_json", "write_text"]

PARTIAL = ".partial"


def write_atomically(path: Path, write: Callable[[Path], object], *, keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place in one move.

    Args:
        path: the file.
        write: fills the file that it is given.
        keep: where the file that stood at `path` before goes; it is replaced if None.

    Raises:
        UserError: the place cannot be written, or the disk is full; what stood at `path` before is intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # safetensors makes files that only their owner can read; a run folder is to be shared like any other.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        if keep is not None and path.exists():
            path.replace(keep)
        partial.replace(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot write {path}: {_reason(error)}; free the space or name another place with --out", code=1
        ) from None
    finally:
        with contextlib.suppress(OSError):  # there may be no such folder
            partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return what the system said; torch and safetensors report a full disk in exceptions of their own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0]


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and the folders inside it."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def check_links(folder: Path) -> None:
    """Refuse a run folder that holds a link out of it, through which others' files would be read or written.

    Raises:
        UserError: there is one; the message names it. Those of the Hugging Face cache to its own blobs are no harm.
    """
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":
        inside.append(folder.parent.parent.resolve() / "blobs")
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise UserError(f"{path} is a link out of its run folder, which is not followed; put a copy there instead")


def check_writable(path: Path) -> None:
    """Raise a `UserError` at once, if a file could not be written at `path` after long work."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    write_atomically(probe, lambda partial: partial.write_bytes(b"probe"))
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
