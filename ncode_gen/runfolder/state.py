"""The state of a training run: written so that a kill at any moment loses little, and read back exactly.

A state is one file: what `torch.save` writes, then a mark and the SHA-256 of all before it. The state before the last
one is kept beside it, so a damaged or half-written file costs the time since then and nothing else.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..errors import UserError
from ..runtime.files import remove_partial_files, write_atomically

STATE, PREVIOUS = Path("state/training.pt"), Path("state/previous.pt")
MARK = b"ncode_gen state sha256 "


class LoadedState(dict[str, Any]):
    """A state, and a notice on how it was found.

    Attributes:
        notice: a message, if the last state could not be used; else empty.
    """

    notice = ""


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state into a run folder; the one before becomes the previous one.

    Raises:
        UserError: the disk is full or the folder cannot be written; both states before are intact.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    checked = content + MARK + hashlib.sha256(content).hexdigest().encode()
    write_atomically(folder / STATE, lambda partial: partial.write_bytes(checked), keep=folder / PREVIOUS)


def has_state(folder: Path) -> bool:
    """Return whether a run folder holds a state."""
    return (folder / STATE).exists() or (folder / PREVIOUS).exists()


def load_state(folder: Path) -> LoadedState | None:
    """Read the last good state of a run folder; only tensors and plain values are accepted.

    Returns:
        The state, with a notice if it is not the last one written; None if there is none yet.

    Raises:
        UserError: there are states and none of them is intact.
    """
    reasons = []
    for path in (folder / STATE, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = LoadedState(_read(path))
        except Exception as error:  # whatever a damaged file makes torch.load raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reasons.append(f"{path} is damaged ({reason})")
            continue
        if reasons:
            state.notice = f"{reasons[0]}; continuing from the state before it, {path}"
        return state
    if reasons:
        raise UserError(f"{' and '.join(reasons)}; remove {folder / STATE.parent} to train from the beginning")
    return None


def _read(path: Path) -> dict[str, Any]:
    content, mark, digest = path.read_bytes().rpartition(MARK)
    if not mark or hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, and remove what a killed process left half written.

    Raises:
        UserError: another process trains in it, or it cannot be written.
    """
    path = folder / STATE.parent / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another place with --out", code=1) from None
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    try:
        lock = FileLock(path, fallback_to_soft=False).acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is training in {folder}; wait for it, or name another --out") from None
    except (OSError, NotImplementedError):
        pass  # a network file system without locks
    with lock:
        remove_partial_files(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process trains in a run folder; nothing is written for the question."""
    path = folder / STATE.parent / "lock"
    try:
        with FileLock(path, fallback_to_soft=False).acquire(timeout=0) if path.exists() else contextlib.nullcontext():
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
