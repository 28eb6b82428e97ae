"""Files written so that nothing is lost or half written."""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

PARTIAL = ".partial"


# What file systems without owners, links or a disk of their own answer (FAT, network, FUSE), and is no loss.
UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY", "EROFS")
    if hasattr(errno, name)
}
# Of a move in one step: also other devices, and a target that is in the way.
NO_MOVE = {*UNSUPPORTED, errno.EXDEV, errno.EEXIST}


def write_atomically(path: Path, write: Callable[[Path], object], *, keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place in one move.

    Where the place knows no rights, no flushing or no moving, the file is written as safely as it allows.

    Args:
        path: the file.
        write: fills the file that it is given.
        keep: where the file that stood at `path` before goes; it is replaced if None.

    Raises:
        UserError: the place cannot be written, or the disk is full; what stood at `path` before is intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors makes files that only their owner can read; a run folder is shared like any other.
        partial.touch()
        rights = stat.S_IMODE(partial.stat().st_mode)
        write(partial)
        with partial.open("rb+") as file:
            _allowing(lambda: os.fsync(file.fileno()))
        if stat.S_IMODE(partial.stat().st_mode) != rights:
            _allowing(lambda: partial.chmod(rights))
        if keep is not None and path.exists():
            _move(path, keep)
        _move(partial, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot write {path}: {_reason(error)}; free the space or name another place with --out", code=1
        ) from None
    finally:
        with contextlib.suppress(OSError):  # there may be no such folder
            partial.unlink(missing_ok=True)


def _allowing(work: Callable[[], object]) -> None:
    """Do what a file system may not know; errors of another kind (a full or broken disk) are raised."""
    try:
        work()
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _move(source: Path, target: Path) -> None:
    """Move a file in one step; where that is refused, copy it, and keep the old one until the copy is whole."""
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno not in NO_MOVE or target.is_dir():
            raise
    aside = target.with_name(f".{target.name}.{os.getpid()}.old{PARTIAL}")
    if target.exists():
        shutil.copyfile(target, aside)
    try:
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            _allowing(lambda: os.fsync(file.fileno()))
    except OSError:
        if aside.exists():
            shutil.copyfile(aside, target)
        raise
    finally:
        aside.unlink(missing_ok=True)
    source.unlink(missing_ok=True)


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
    """Write a text file atomically, in UTF-8; names that are no text in any encoding lose these letters."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="replace"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
