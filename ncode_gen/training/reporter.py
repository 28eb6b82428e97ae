"""How training shows itself: a bar on a terminal, a line a minute elsewhere, and TensorBoard."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data.images import Images
from ..data.pictures import tiled
from ..distributions import LatentModel
from ..runtime.progress import SECONDS_BETWEEN_LINES, Shown, console
from .curves import Curves
from .phase import Phase

PICTURES = 64


class Reporter(Shown):
    """Says how training goes.

    Args:
        folder: run folder; TensorBoard's files go below it.
        batch: images in a step.
        quiet: whether to print nothing but warnings.
        writes: whether this process writes and prints at all.
    """

    def __init__(self, folder: Path, batch: int, *, quiet: bool, writes: bool = True) -> None:
        self.folder, self.batch, self.quiet, self.writes = folder, batch, quiet, writes
        self.curves: Curves | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]:.0f} {task.fields[unit]}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not writes or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=None, loss="-", speed=0.0, unit="images")
        self.start, self.first_step, self.last_line = time.monotonic(), -1, 0.0

    def begin(self, step: int) -> None:
        """Open TensorBoard's file; training starts at `step`."""
        if self.writes:
            self._draw(lambda: self._open(step))

    def begin_phase(self, phase: Phase) -> None:
        """Say which phase begins, if it is not the first; its speed is its own."""
        first, last = phase.first + phase.at.epoch + 1, phase.first + phase.epochs
        if phase.first and phase.reports and first <= last:
            self.log(f"Training the {phase.name}, epochs {first} to {last}.")
        self.first_step = -1
        self.bar.update(self.task, total=phase.epochs * phase.per_epoch)

    def _open(self, step: int) -> None:
        self.curves = Curves(self.folder / "tensorboard", step)

    def close(self) -> None:
        """Take the bar away and finish TensorBoard's files."""
        super().close()
        if self.curves is not None:
            self._draw(self.curves.close)

    def log(self, line: str) -> None:
        """Print one line, unless quiet."""
        if not self.quiet and self.writes:
            console.print(line)

    def warn(self, line: str) -> None:
        """Print one line about something lost, even if quiet."""
        if self.writes:
            console.print(line, soft_wrap=True)

    def _draw(self, work: Callable[[], object]) -> None:
        """Write curves; if they cannot be written, say so and go on without them."""
        try:
            work()
        except Exception as error:  # of another library, which must not stop training whatever it raises
            self.curves = None
            reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
            self.warn(f"cannot write {self.folder / 'tensorboard'}: {reason}; training continues without curves")

    def step(self, phase: Phase, sums: list[float]) -> None:
        """Show where a phase stands, the loss of the epoch so far and the speed."""
        now, (step, total) = time.monotonic(), phase.position()
        if self.first_step < 0:
            # The first steps may have paid the compiler; the speed is counted from here.
            self.start, self.first_step = now, int(step)
        images = self.batch if phase.reports else 1
        speed = (step - self.first_step) * images / max(now - self.start, 1e-9)
        loss = sums[0] / max(1.0, phase.at.batches - sums[3])
        shown = f"{loss:.2f}" if abs(loss) >= 1 else f"{loss:.5f}"
        place = f"epoch {phase.first + phase.at.epoch + 1}" if phase.reports else phase.name
        unit = "images" if phase.reports else "updates"
        self.bar.update(self.task, completed=step, description=place, loss=shown, speed=speed, unit=unit)
        if not console.is_terminal and speed > 0 and now - self.last_line > SECONDS_BETWEEN_LINES:
            left = (total - step) * images / speed
            self.log(f"{place}, step {step:.0f}/{total}: loss {shown}, {speed:.0f} {unit}/s, {left:.0f} s left")
            self.last_line = now

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the numbers of an epoch to TensorBoard."""
        numbers = {key: value for key, value in row.items() if key not in ("step", "epoch")}
        if (curves := self.curves) is not None:
            self._draw(lambda: curves.numbers(row["step"], numbers))
        if "validation_nats" in row and console.is_terminal:
            self.log(f"epoch {row['epoch']}: validation {row['validation_nats']:.2f} nats")
        if "validation_flow_matching" in row and console.is_terminal:
            self.log(f"epoch {row['epoch']}: validation flow-matching loss {row['validation_flow_matching']:.5f}")

    def pictures(self, model: LatentModel, images: Images, step: int) -> None:
        """Write a grid of samples, and one of reconstructions below their originals, to TensorBoard."""
        if (curves := self.curves) is None:
            return
        originals = images.first(16, model.device)
        pairs = tiled(torch.cat([originals, model.reconstruct(originals)]), len(originals), 2, 0.0)
        samples = tiled(model.sample(PICTURES, torch.Generator().manual_seed(0)), 8, 2, 0.0)
        self._draw(lambda: curves.picture(step, "samples", samples))
        self._draw(lambda: curves.picture(step, "reconstructions", pairs))
