"""A section of a recipe: one frozen dataclass for each kind of component, with the ranges of its keys beside them."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from ..errors import UserError

# The largest numbers are far beyond use; they keep a mistaken or hostile recipe from taking all memory or time before
# anything can be checked.
Width = Annotated[int, Meta(ge=1, le=2**20)]
Count = Annotated[int, Meta(ge=0, le=2**20)]
Depth = Annotated[int, Meta(ge=0, le=1000)]
Many = Annotated[int, Meta(ge=1, le=2**40)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
NotNegative = Annotated[float, Meta(ge=0, le=1e300)]
BOUNDS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}
Positive = Annotated[float, Meta(gt=0, le=1e300)]


def needs(words: str, condition: Callable[[Any], bool], *, default: Any) -> Any:
    """Return a dataclass field that has an effect only under a condition on the other keys of its section.

    Args:
        words: the condition in words, for messages.
        condition: maps the section to whether the key has an effect.
        default: value that the key has where it has no effect.
    """
    return field(default=default, metadata={"needs": (words, condition)})


@dataclass(frozen=True)
class Section:
    """A section of a recipe, of one kind; its fields are the keys of the section.

    Subclasses are frozen dataclasses whose fields have types that msgspec checks, defaults, and a docstring each, which
    `--help` shows.

    Attributes:
        section: name of the section.
        tag: the key that names the kind.
        kind: the kind; empty for a section that has one kind only.
        target: "module:name" of what `build` calls, with the keys as arguments; the module is relative to this package.
    """

    section: ClassVar[str]
    tag: ClassVar[str] = "kind"
    kind: ClassVar[str] = ""
    target: ClassVar[str] = ""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the keys, without that of the kind."""
        return tuple(each.name for each in dataclasses.fields(cls))

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> Self:
        """Return the section of a TOML table without its kind.

        Raises:
            UserError: a key is unknown, or a value has a wrong type or is out of range.
        """
        for key in values:
            if key not in cls.names():
                raise UserError(f"{source}: {cls._unknown(key)}")
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise UserError(f"{source}: {cls._explained(error, values)}") from None

    @classmethod
    def _unknown(cls, key: str) -> str:
        near = difflib.get_close_matches(key, [*cls.names(), cls.tag] if cls.kind else cls.names(), n=1)
        hint = f"did you mean {cls.section}.{near[0]}?" if near else f"known are {', '.join(cls.names()) or 'none'}"
        return f"unknown key {cls.section}.{key}{cls._of_kind()}; {hint}"

    @classmethod
    def _of_kind(cls) -> str:
        return f' of {cls.section}.{cls.tag} = "{cls.kind}"' if cls.kind else ""

    @classmethod
    def _explained(cls, error: msgspec.ValidationError, values: Mapping[str, Any]) -> str:
        """Return a message of msgspec with the key and its value."""
        text, _, place = str(error).partition(" - at `$.")
        key = re.split(r"[`\[]", place)[0]
        value, hint = values.get(key), ""
        if text.startswith("Invalid enum value"):
            choices = _choices(cls, key)
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            text = f"must be one of {', '.join(map(repr, choices))}"
        else:
            text = re.sub(r", got .*", "", text.replace("`", "")).replace("Number out of range", "is too large")
            text = re.sub(r"Expected \w+ (>=|<=|>|<) ", lambda found: f"must be {BOUNDS[found[1]]} ", text)
            text = text.replace("Expected ", "must be of type ")
        return f"{cls.section}.{key} {text}, got {value!r}{hint}"

    def check(self, source: str) -> None:
        """Raise a `UserError` that names the key, if a value is out of range or a key has no effect."""
        self.read(self.values(), source)
        for key, words in self.unused().items():
            value = getattr(self, key)
            if value != _default(type(self), key):
                raise UserError(
                    f"{source}: {self.section}.{key} = {value!r} has an effect only with {words}; leave it out"
                )
        try:
            self.check_pairs()
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None

    def check_pairs(self) -> None:
        """Raise a ValueError that names the keys, if values of this section do not go together."""

    def values(self) -> dict[str, Any]:
        """Return all keys and values."""
        return {key: getattr(self, key) for key in self.names()}

    def unused(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others, and what they would need."""
        conditions = {
            each.name: each.metadata["needs"] for each in dataclasses.fields(self) if "needs" in each.metadata
        }
        return {key: words for key, (words, condition) in conditions.items() if not condition(self)}

    def used(self) -> dict[str, Any]:
        """Return the section as a TOML table: its kind, and the keys that have an effect."""
        unused = self.unused()
        held = {key: list(value) if isinstance(value, tuple) else value for key, value in self.values().items()}
        named = {self.tag: self.kind} if self.kind else {}
        return named | {key: value for key, value in held.items() if key not in unused}

    def without_unused(self, among: Iterable[str] | None = None) -> Self:
        """Return the section with the default of every key, or of those among some, that has no effect in it."""
        dropped = self.unused().keys() & set(self.names() if among is None else among)
        return dataclasses.replace(self, **{key: _default(type(self), key) for key in dropped})

    def taking(self, other: Section) -> Self:
        """Return the section with the values of another kind of the same section, where both know a key."""
        shared = {key: value for key, value in other.values().items() if key in self.names()}
        return dataclasses.replace(self, **shared).without_unused()

    def build(self, *context: Any, **more: Any) -> Any:
        """Return what the section describes.

        Args:
            *context: what the component has to know of the others, such as the shape of the images.
            **more: the same by name, for kinds that say that they take it.
        """
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"ncode_gen.{module}"), name)(*context, **more, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Return the keys that `build` hands on: all but those that are for training."""
        return self.values()


def _default(cls: type[Section], key: str) -> Any:
    return next(each.default for each in dataclasses.fields(cls) if each.name == key)


def _choices(cls: type[Section], key: str) -> list[str]:
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.DataclassType)
    kind = next(each.type for each in info.fields if each.name == key)
    return [str(value) for value in kind.values] if isinstance(kind, msgspec.inspect.LiteralType) else []
