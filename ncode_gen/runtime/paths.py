"""Paths as users write them, and where files of the package lie."""

import os
import tempfile
from pathlib import Path

from ..errors import UserError


def user_path(path: str | Path) -> Path:
    """Return a path whose first part ~ or ~USER is a home folder.

    Raises:
        UserError: there is no such home folder.

    >>> user_path("data"), user_path("~/data") == Path.home() / "data"
    (PosixPath('data'), True)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home folder for {path}; write the full path") from None


def bundled(folder: str) -> list[Path]:
    """Return the places where `checkpoints` or `models` may be found: here, beside the package, inside it."""
    package = Path(__file__).parent.parent
    return [Path(folder), package.parent / folder, package / "_bundled" / folder]


def cache_folder() -> Path:
    """Return the user's folder for things that can be made again; a temporary one, where there is no home."""
    try:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = named if named.is_absolute() else Path.home() / ".cache"  # as the XDG specification has it
    except RuntimeError:  # a user whom the system does not know, as in containers
        home = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return home / "ncode_gen"
