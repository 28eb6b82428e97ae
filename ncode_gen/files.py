"""Files written so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

__all__ = ["append_json_line", "check_writable", "write_atomically", "write_json", "write_text"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place in one move.

    Raises:
        UserError: the place cannot be written, or the disk is full; what stood at `path` before is intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # safetensors makes files that only their owner can read; a run folder is to be shared like any other.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        partial.replace(path)
    except UserError:
        raise
    except Exception as error:
        # torch and safetensors report a full disk in exceptions of their own.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path}: {reason}; free the space or name another place with --out", code=1
        ) from None
    finally:
        with contextlib.suppress(OSError):  # there may be no such folder
            partial.unlink(missing_ok=True)


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


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line of JSON.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free the space", code=1) from None
