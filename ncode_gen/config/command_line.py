"""Recipes on the command line: the flags of a section are those of its kind, which the command line may choose too."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from .recipe import Recipe
from .registry import check_key, find_kind, known_kinds
from .section import Section

Options = TypeVar("Options")
Field = tuple[str, Any, Any]


def chosen_kinds(recipe: Recipe, argv: Sequence[str]) -> Recipe:
    """Return a recipe with the kinds that a command line chooses; keys that both kinds know keep their values.

    Raises:
        UserError: the kind is unknown, or a flag is no key of the kind.
    """
    changed: dict[str, Section] = {}
    for name, section in recipe.sections.items():
        for flag, value in _flags(argv):
            if flag == f"{name}.{section.tag}" and section.kind and value != section.kind:
                changed[name] = find_kind(name, value, "command line")().taking(section)
    found = dataclasses.replace(recipe, **cast(Any, changed))
    for flag, _ in _flags(argv):
        name, _, key = flag.partition(".")
        own = found.sections.get(name)
        if own is not None:
            check_key(key.removeprefix("no_"), type(own), "command line")
    return found


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of flags with what follows them."""
    for place, word in enumerate(argv):
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            yield name, value if given else argv[place + 1] if place + 1 < len(argv) else ""


def all_flags(options: type[Options]) -> type[Options]:
    """Return a dataclass of options with the flags of all kinds, with which a command line is looked at first."""
    sections = []
    for name, section in Recipe().sections.items():
        fields: dict[str, Field] = {section.tag: (section.tag, str, "")} if section.kind else {}
        for kind in known_kinds(name) or ("",):
            cls = find_kind(name, kind, name) if kind else type(section)
            hints = typing.get_type_hints(cls, include_extras=True)
            for each in dataclasses.fields(cls):
                fields.setdefault(each.name, (each.name, hints[each.name], each.default))
        cls = dataclasses.make_dataclass(name, list(fields.values()), frozen=True)
        sections.append((name, cls, dataclasses.field(default_factory=cls)))
    return _joined(options, [("name", str, ""), ("seed", int, 0), *sections])


def with_recipe(options: type[Options], recipe: Recipe) -> type[Options]:
    """Return a dataclass of options with a field `recipe`, whose flags are those of the recipe's kinds."""
    import tyro

    fields: list[Field] = []
    for key, value, words in (
        ("name", recipe.name, "Name of the run folder."),
        ("seed", recipe.seed, "Seed of initial weights, data order and noise."),
    ):
        fields.append((key, Annotated[type(value), tyro.conf.arg(help=words)], value))
    for name, section in recipe.sections.items():
        cls: Any = type(section)
        if section.kind:
            kinds = known_kinds(name)
            words = "; ".join(f"{kind}: {_summary(name, kind)}" for kind in kinds)
            words += ". The kind decides the other keys."
            hint: Any = Annotated[Literal[kinds], tyro.conf.arg(help=words)]
            cls = dataclasses.make_dataclass(
                cls.__name__, [(section.tag, hint, section.kind)], bases=(cls,), frozen=True, kw_only=True
            )
        fields.append((name, cls, dataclasses.field(default=cls(**section.values()))))
    return _joined(options, fields)


def _joined(options: type[Options], fields: list[Field]) -> type[Options]:
    """Return a dataclass of options with a field `recipe` of these fields, whose flags have no prefix."""
    import tyro

    flags = dataclasses.make_dataclass("RecipeFlags", fields, frozen=True)
    hint: Any = Annotated[flags, tyro.conf.arg(name="")]
    recipe = [("recipe", hint, dataclasses.field(default_factory=flags))]
    return cast("type[Options]", dataclasses.make_dataclass(options.__name__, recipe, bases=(options,), frozen=True))


def _summary(section: str, kind: str) -> str:
    return (find_kind(section, kind, section).__doc__ or "").strip().partition("\n")[0].rstrip(".")


def recipe_of(flags: Any, recipe: Recipe) -> Recipe:
    """Return the recipe of parsed flags; `recipe` is the one that they were made from."""
    sections = {}
    for name, section in recipe.sections.items():
        given = type(section)(**{key: getattr(getattr(flags, name), key) for key in section.names()})
        # What the recipe says and a flag takes the effect from is not the user's mistake.
        lost = {key for key, value in section.values().items() if getattr(given, key) == value}
        sections[name] = given.without_unused(lost)
    return Recipe(flags.name, flags.seed, **cast(Any, sections))
