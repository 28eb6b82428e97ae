"""What a run writes about itself in JSON; checksums detect damaged objects, and those of another run."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..runtime.files import write_json, write_text

CHECK = "check"


def _check(value: Mapping[str, Any], owner: str = "") -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of an object and of the run that it belongs to."""
    return hashlib.sha256(f"{owner}\n{json.dumps(value)}".encode()).hexdigest()[:16]


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    write_json(path, {**value, CHECK: _check(value)})


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_record` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or it is not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and make it again") from None
    found = value.pop(CHECK, None) if isinstance(value, dict) else None
    if found is None or found != _check(value):
        raise UserError(f"{path} is damaged or was changed: its checksum is wrong; remove it, and make it again")
    return dict(value)


class JsonLines:
    """A file that grows by one JSON object a line, each with its checksum.

    Args:
        path: the file; made when it is first written.
        owner: identity of the run; objects of other runs are left out when it is read.

    Attributes:
        damaged: how many lines were left out when it was last read.
    """

    def __init__(self, path: Path, owner: str = "") -> None:
        self.path, self.owner = path, owner
        self.damaged = 0
        self._pending = b""

    def read(self) -> list[dict[str, Any]]:
        """Return the objects; lines that are none of this run's, such as one that a kill cut off, are left out.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from None
        found, self.damaged = [], len(lines)
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict) and value.pop(CHECK, None) == _check(value, self.owner):
                    found.append(value)
        self.damaged -= len(found)
        return found

    def _line(self, value: Mapping[str, Any]) -> str:
        return json.dumps({**value, CHECK: _check(value, self.owner)}) + "\n"

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Take all lines away but the objects that are wanted.

        Raises:
            UserError: the place cannot be written.
        """
        if self.path.exists():
            write_text(self.path, "".join(self._line(row) for row in self.read() if wanted(row)))

    def append(self, value: Mapping[str, Any]) -> None:
        """Append an object, after those that could not be written before.

        Raises:
            UserError: the place cannot be written, or the disk is full; nothing half written stays in the file, and the
                next call tries again.
        """
        self._pending += self._line(value).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    written = file.write(self._pending)
                    if written != len(self._pending):
                        raise OSError(28, "No space left on device")
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; free the space", code=1) from None
        self._pending = b""
