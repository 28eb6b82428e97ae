"""List runs, or set them side by side: `python -m ncode_gen.runs [FOLDER ...] [--compare]`."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from .command import parse, run_command
from .config.recipe import changed_keys
from .errors import UserError
from .runfolder.history import RunRecord, find_runs, read_run

# Off a terminal every row is one line, for grep and the like.
UNBROKEN = 1000
# What must be the same for two scores to be compared.
PROTOCOL = ("data", "split", "test_images", "n", "features", "particles", "likelihood")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FOLDER ...]")] = ("runs",)
    """Run folders, folders that hold some, or folders in checkpoints/."""
    plugin: str = ""
    """Module, or Python file, with components of your own; may be given several times."""
    compare: bool = False
    """Set the runs side by side: in what their recipes differ, and all scores."""


def main(argv: list[str]) -> None:
    """Print a table of the runs, and what is wrong with them.

    Raises:
        UserError: a name means no run; raised after the table of the others.
    """
    options = parse(Options, "runs", argv, "List runs with their state, best scores and pictures, or compare them.")
    records, notices, missing = [], [], []
    for name in options.runs:
        try:
            folders = list(find_runs(name))
        except UserError as error:
            missing.append(str(error))
            continue
        for folder in folders:
            try:
                records.append(read_run(folder))
            except UserError as error:
                notices.append(str(error))
    notices += [notice for record in records for notice in record.notices]
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=UNBROKEN)
    if options.compare:
        notices += _incomparable(records)
    if records:
        console.print(_side_by_side(records) if options.compare else _listed(records))
    for notice in notices:
        console.print(notice, soft_wrap=True)
    if missing:
        raise UserError("; ".join(missing))
    if not records:
        raise UserError(f"there are no runs in {', '.join(options.runs)}; train one with python -m ncode_gen.train")


def _listed(records: Sequence[RunRecord]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "epoch", "validation", "FID", "NLL", "time", "pictures"):
        table.add_column(column, justify="left" if column in ("run", "state", "pictures") else "right", overflow="fold")
    for record in records:
        pictures = record.report or (record.pictures[0].parent if record.pictures else None)
        table.add_row(
            str(record.folder),
            record.progress,
            f"{record.epochs}/{record.recipe.epochs}",
            _number(record.best_validation),
            _number(record.scores.get("fid", {}).get("value")),
            _number(record.scores.get("nll_nats", {}).get("value")),
            _duration(record.seconds),
            str(pictures) if pictures else "-",
        )
    return table


def _side_by_side(records: Sequence[RunRecord]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for record in records:
        table.add_column(record.folder.name, justify="right", overflow="fold")
    recipes = [tomllib.loads(record.recipe.to_toml()) for record in records]
    differing = sorted({key for recipe in recipes for key in changed_keys(recipes[0], recipe)} - {"name", "data.root"})
    for key in differing:
        section, _, name = key.rpartition(".")
        values = [(recipe.get(section, {}) if section else recipe).get(name, "-") for recipe in recipes]
        table.add_row(key, *(str(value) for value in values))
    table.add_section()
    table.add_row("state", *(record.progress for record in records))
    table.add_row("epoch", *(f"{record.epochs}/{record.recipe.epochs}" for record in records))
    table.add_row("time", *(_duration(record.seconds) for record in records))
    table.add_row("best validation, nats", *(_number(record.best_validation) for record in records))
    table.add_section()
    for key in dict.fromkeys(key for record in records for key in record.scores):
        table.add_row(key, *(_score(record, key) for record in records))
    return table


def _score(record: RunRecord, key: str) -> str:
    score = record.scores.get(key)
    if score is None:
        return "-"
    return f"{score['value']:.4g} ± {(score['high'] - score['low']) / 2:.2g}"


def _incomparable(records: Sequence[RunRecord]) -> list[str]:
    """Say where scores were made in different ways."""
    scored = [record for record in records if record.protocol]
    found = []
    for key in PROTOCOL:
        values = {str(_plain(record.protocol.get(key))): record for record in scored}
        if len(values) > 1:
            named = ", ".join(f"{value} ({record.folder})" for value, record in values.items())
            found.append(f"scores are not comparable: {key} is {named}")
    return found


def _plain(value: object) -> object:
    return f"{value['name']} {value['digest']}" if isinstance(value, dict) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    run_command(main)
