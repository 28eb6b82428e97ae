"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError

__all__ = ["user_path"]


def user_path(path: str | Path) -> Path:
    """Return a path whose first part ~ or ~USER is a home folder.

    Raises:
        UserError: nobody knows that home folder.

    >>> user_path("data"), user_path("~/data") == Path.home() / "data"
    (PosixPath('data'), True)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home folder for {path}; write the whole path") from None
