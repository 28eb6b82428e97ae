"""What a run folder says about its run: progress, curves, scores and pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.recipe import Recipe
from ..errors import UserError
from ..runtime.files import check_links
from ..runtime.paths import bundled
from .records import JsonLines, read_record
from .run import ENVIRONMENT, EVALUATION, METRICS, RECIPE, WEIGHTS, find_run, load_recipe
from .state import is_locked
from .weights import open_weights

GALLERY, REPORT = "gallery", "report.html"
PICTURES = (".png", ".gif", ".svg", ".pdf")


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read and checked.

    Attributes:
        folder: the folder.
        recipe: its recipe.
        progress: "finished", "training", "stopped" (--resume goes on), "begun" (no epoch done) or "damaged".
        epochs: how many epochs are done.
        environment: what environment.json holds; empty if there is none.
        rows: one object an epoch, of metrics.jsonl.
        protocol: how the scores were made; empty if there are none of these weights.
        scores: value, low and high by name.
        pictures: the files of its gallery.
        notices: what is damaged, missing or does not belong together, one message each.
    """

    folder: Path
    recipe: Recipe
    progress: str
    epochs: int
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    protocol: dict[str, Any]
    scores: dict[str, dict[str, float]]
    pictures: tuple[Path, ...]
    notices: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time that they took."""
        return float(sum(row["seconds"] for row in self.rows))

    @property
    def best_validation(self) -> float | None:
        """The lowest validation loss, in nats an image."""
        return min((float(row["validation_nats"]) for row in self.rows if "validation_nats" in row), default=None)

    @property
    def report(self) -> Path | None:
        """The report in its gallery."""
        path = self.folder / GALLERY / REPORT
        return path if path.is_file() else None


def find_runs(name: str) -> Iterator[Path]:
    """Yield the run folders in a folder, or the one that a name means; "checkpoints" is found from anywhere.

    Raises:
        UserError: there is no such folder or run.
    """
    places = bundled(name) if name.rstrip("/") == "checkpoints" else [Path(name)]
    place = next((place for place in places if place.is_dir()), Path(name))
    if not place.is_dir() or (place / WEIGHTS).is_file():
        yield find_run(name)
        return
    yield from sorted(path.parent for path in place.rglob(RECIPE))


def read_run(folder: Path, gallery: Path | None = None) -> RunRecord:
    """Read a run folder; what is damaged is skipped, and listed in the notices.

    Args:
        folder: the run folder.
        gallery: folder of its pictures, if it is another than its own.

    Raises:
        UserError: it holds no readable recipe, or a link out of it.
    """
    check_links(folder)
    recipe = load_recipe(folder)
    notices: list[str] = []
    environment = _record(folder / ENVIRONMENT, notices)
    lines = JsonLines(folder / METRICS, str(environment.get("run", "")))
    rows = []
    if environment:
        rows = [row for row in lines.read() if {"epoch", "seconds"} <= row.keys()]
        if lines.damaged:
            notices.append(f"{lines.damaged} lines of {lines.path} are damaged or of another run, and skipped")
    elif lines.path.exists():
        notices.append(f"{folder} has no readable {ENVIRONMENT}, so {lines.path} cannot be known to be its own")
    evaluation = _record(folder / EVALUATION, notices)
    trained = None
    if (folder / WEIGHTS).exists():
        try:
            with open_weights(folder / WEIGHTS) as stored:
                stored.check_recipe(recipe.to_toml(), folder / RECIPE)
                trained, digest = stored.epochs, stored.digest[:16]
                if stored.earlier:
                    notices.append(f"{folder} was written by an earlier version; its recipe is read in today's keys")
        except UserError as error:
            notices.append(str(error))
        if trained is not None and evaluation and evaluation["protocol"]["weights_digest"] != digest:
            notices.append(f"{folder / EVALUATION} scores other weights than {folder / WEIGHTS}; evaluate again")
            evaluation = {}
    found = [int(row["epoch"]) for row in rows]
    done = max([*found, trained or 0])
    if found != list(range(1, done + 1)):
        notices.append(f"{lines.path} has {len(found)} of {done} epochs; the rest are missing")
    place = gallery or folder / GALLERY
    pictures = tuple(sorted(path for path in place.glob("*") if path.suffix in PICTURES)) if place.is_dir() else ()
    return RunRecord(
        folder,
        recipe,
        _progress(folder, recipe, done, trained),
        done,
        environment,
        rows,
        evaluation.get("protocol", {}),
        evaluation.get("scores", {}),
        pictures,
        tuple(notices),
    )


def _record(path: Path, notices: list[str]) -> dict[str, Any]:
    try:
        return read_record(path)
    except FileNotFoundError:
        return {}
    except UserError as error:
        notices.append(str(error))
        return {}


def _progress(folder: Path, recipe: Recipe, done: int, trained: int | None) -> str:
    if is_locked(folder):
        return "training"
    if (folder / WEIGHTS).exists() and trained is None:
        return "damaged"
    if trained is not None and done >= recipe.epochs:
        return "finished"
    return "stopped" if done else "begun"
