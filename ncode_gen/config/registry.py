"""The kinds of components, by section and name; users add theirs from modules that they name."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast, dataclass_transform

from ..errors import UserError
from .section import Section, needs

ENTRY_POINTS = "ncode_gen.plugins"
Kind = TypeVar("Kind", bound=type[Section])

_kinds: dict[str, dict[str, type[Section]]] = {}
_installed: list[str] = []


@dataclass_transform(frozen_default=True, field_specifiers=(field, needs))
def register(kind: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a class a frozen dataclass, known as the section of a kind.

    >>> from ncode_gen.config import LikelihoodSection
    >>> @register("doctest")
    ... class Mine(LikelihoodSection):
    ...     scale: float = 1.0
    >>> find_kind("likelihood", "doctest", "here") is Mine
    True
    """

    def known(cls: Kind) -> Kind:
        cls = cast(Kind, dataclass(frozen=True)(cls))
        cls.kind = kind
        if cls.tag != "kind":
            setattr(cls, cls.tag, kind)
        _kinds.setdefault(cls.section, {})[kind] = cls
        return cls

    return known


def known_kinds(section: str) -> tuple[str, ...]:
    """Return the names of the kinds of a section; none for a section that has one kind only."""
    return tuple(_kinds.get(section, ()))


def find_kind(section: str, kind: str, source: str, plugins: Iterable[str] = ()) -> type[Section]:
    """Return the section class of a kind.

    Args:
        section: name of the section.
        kind: name of the kind.
        source: where it is named, for the message.
        plugins: the modules that the recipe says it needs; none is imported because of that.

    Raises:
        UserError: it is not registered; the message says how to name a plugin.
    """
    known = _kinds.get(section, {})
    if kind not in known and not _installed:
        _load_installed()
    if kind in known:
        return known[kind]
    near = difflib.get_close_matches(str(kind), list(known), n=1)
    tag = next(iter(known.values())).tag
    reason = f"{source}: {section}.{tag} must be one of {', '.join(map(repr, known))}, got {kind!r}"
    wanted = [name for name in plugins if name not in sys.modules]
    if wanted:
        raise UserError(
            f"{reason}; the recipe says that it needs the plugin {', '.join(wanted)}: if you trust it, name it with "
            f"--plugin {wanted[0]} (in Python: plugins=[{wanted[0]!r}])"
        )
    raise UserError(
        f"{reason}; " + (f"did you mean {near[0]!r}?" if near else "a kind of your own needs --plugin MODULE")
    )


def check_key(key: str, own: type[Section], source: str) -> None:
    """Raise a `UserError`, if a key is none of a kind but one of another kind of the same section."""
    if key in (*own.names(), own.tag):
        return
    others = [kind for kind, cls in _kinds.get(own.section, {}).items() if key in cls.names()]
    if others:
        raise UserError(
            f'{source}: {own.section}.{key} has no effect with {own.section}.{own.tag} = "{own.kind}", only with '
            f"{', '.join(others)}; leave it out"
        )


def _load_installed() -> None:
    """Load the plugins of installed packages, which name them as entry points of the group ncode_gen.plugins."""
    from importlib import metadata  # takes long to import

    _installed.append("done")
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            raise UserError(f"the plugin {entry.value} of an installed package cannot be imported ({error})") from None


def load_plugins(names: Iterable[str]) -> None:
    """Import the modules that the user names, so that they register their kinds.

    Args:
        names: names of modules, which may lie in the current folder, or paths of Python files.

    Raises:
        UserError: there is no such module, or it cannot be imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                if (here := str(Path.cwd())) not in sys.path:
                    sys.path.append(here)
                importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own module raises
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"the plugin {name} cannot be imported ({type(error).__name__}: {reason})") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no plugin {path}; name a Python file or a module")
    if path.stem in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def plugin_of(section: Section) -> str | None:
    """Return the module of a section's kind, if it is a plugin."""
    module = type(section).__module__
    return None if module.split(".")[0] == "ncode_gen" else module
