"""A bar on a terminal, a line a minute elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60.0

# Paths and names are printed as they are: brackets are no markup, and :words: no pictures.
console = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Shown:
    """Something with a bar that is shown while it is entered."""

    bar: Progress

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


class track(Shown):
    """A bar for a known number of steps, with the time left; quiet off a terminal.

    Args:
        label: what is done.
        total: number of steps.
        quiet: whether to show nothing.
    """

    def __init__(self, label: str, total: int, *, quiet: bool) -> None:
        self.bar = Progress(
            TextColumn(label),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(label, total=total)
        self.label, self.total, self.quiet, self.done = label, total, quiet, 0
        self.last_line = self.start = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.done += steps
        self.bar.advance(self.task, steps)
        now = time.monotonic()
        due = now - self.last_line > SECONDS_BETWEEN_LINES and self.done > 0
        if due and not self.quiet and not console.is_terminal:
            left = (now - self.start) / self.done * (self.total - self.done)
            console.print(f"{self.label}: {self.done}/{self.total}, {left:.0f} s left")
            self.last_line = now
