"""Training: one loop that runs phases, each exactly resumable. To be read from top to bottom."""

import contextlib
import signal
import time
from pathlib import Path

import torch

from ..config import Recipe
from ..data import Splits
from ..distributions import LatentModel
from ..errors import UserError
from ..runfolder.run import save_weights
from ..runfolder.state import locked, save_state
from ..runtime.device import preserved_settings
from ..runtime.seeding import preserved_randomness, random_states
from ..runtime.signals import StopRequest, handle_signals
from ..runtime.workers import ALONE, Workers
from .labels import with_classes
from .phase import Phase
from .start import Start

REPORT_EVERY, SAVE_SECONDS = 20, 300.0


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    quiet: bool = False,
    workers: Workers = ALONE,
    init: str = "",
) -> LatentModel:
    """Train the model of a recipe into a run folder.

    Args:
        recipe: the model.
        splits: the images.
        folder: run folder; made if absent.
        device: where to train.
        resume: go on from the last good state in the folder, exactly; from the beginning, if there is none yet.
        quiet: print nothing but errors and what was lost.
        workers: the processes that share each batch; only the main one writes.
        init: run whose weights a training that begins starts from, where names and shapes are the same; none if empty.

    Returns:
        The model with averaged weights and fitted prior, in eval mode.

    Raises:
        UserError: too many losses in a row are not finite, the state does not fit the recipe, another process trains
            in the folder, or the folder cannot be written.
        Interrupted: a signal asked to stop; the state was saved.
    """
    lock = locked(folder) if workers.is_main else contextlib.nullcontext()
    with lock, handle_signals() as stop, preserved_randomness(), preserved_settings(device):
        recipe = with_classes(recipe, splits)
        start = Start(recipe, splits, folder, device, stop.check, quiet=quiet, workers=workers, init=init)
        with start.reporter:
            loop = _Loop(start, stop)
            for phase in start.begin(resume):
                if phase.shared or workers.is_main:
                    loop.complete(phase)
        if workers.is_main:
            save_weights(folder, start.average, start.recipe, start.epochs_done())
    return start.average


class _Loop:
    """What happens in each phase."""

    def __init__(self, start: Start, stop: StopRequest) -> None:
        self.start, self.stop, self.reporter = start, stop, start.reporter
        self.recipe, self.workers, self.device = start.recipe, start.workers, start.device
        self.saved = time.monotonic()

    def complete(self, phase: Phase) -> None:
        """Go through the epochs of a phase that are still to come."""
        self.start.prepare(phase)
        self.reporter.begin_phase(phase)
        while phase.at.epoch < phase.epochs:
            self.epoch(phase)
        phase.end()
        self._save(phase)

    def epoch(self, phase: Phase) -> None:
        """Train to the end of an epoch, then validate, report and save.

        Raises:
            Interrupted: a signal asked to stop, or its process group did; the state was saved.
            UserError: too many batches in a row were skipped.
        """
        at = phase.at
        if at.seen and at.images != phase.images:
            # In another order, it is unknown which images were seen.
            number = phase.first + at.epoch + 1
            self.reporter.warn(f"{at.images} training images have become {phase.images}: epoch {number} starts over")
            at.seen, at.batches, at.sums = 0, 0, [0.0] * 4
        at.images = phase.images
        started = time.perf_counter() - at.seconds
        sums = torch.tensor(at.sums, device=self.device)
        sizes = phase.sizes()
        left = sum(map(len, sizes))
        for number, (parts, images) in enumerate(phase.batches(sizes), start=1):
            sums += phase.update(parts)
            at.step += 1
            at.batches += 1
            at.seen += images
            last = at.batches % REPORT_EVERY == 0 or number == left
            if last or self.device.type == "cpu":  # elsewhere, asking for a number waits for the device
                self._check_skipped(phase)
            if last:
                self.reporter.step(phase, sums.tolist())
            if self._to_be_saved(phase, last):
                at.sums, at.seconds = sums.tolist(), time.perf_counter() - started
                self._save(phase)
                self.stop.check()
        self._housekeeping(phase, sums.tolist(), time.perf_counter() - started)

    def _to_be_saved(self, phase: Phase, last: bool) -> bool:
        """Return whether to save, to stop or because it is time.

        Several processes agree on it every few steps, so that none waits for another.
        """
        late = time.monotonic() - self.saved > SAVE_SECONDS
        if self.workers.count > 1 and phase.shared:
            if not last:
                return False
            wishes = self.workers.sum(torch.tensor([float(self.stop.number > 0), float(late)], device=self.device))
            if wishes[0] and not self.stop.number:
                self.stop.number = signal.SIGTERM
            late = bool(wishes[1])
        return self.stop.number > 0 or late

    def _check_skipped(self, phase: Phase) -> None:
        assert phase.step is not None
        skipped, limit = int(phase.step.skipped_in_a_row), self.recipe.training.max_skipped
        if skipped > limit:
            raise UserError(
                f"the loss, its gradient or a solve was not finite in {skipped} batches in a row, the last at step "
                f"{phase.at.step} (learning rate {phase.current_lr():.2g}); lower training.lr or training.grad_clip, "
                f"look for damaged images, and continue from the saved state with --resume {self.start.folder}",
                code=1,
            )

    def _housekeeping(self, phase: Phase, sums: list[float], seconds: float) -> None:
        """Validate, report and save at the end of an epoch."""
        at, training = phase.at, self.recipe.training
        row = phase.summary(sums, seconds)
        at.epoch, at.seen, at.batches, at.sums, at.seconds = at.epoch + 1, 0, 0, [0.0] * 4, 0.0
        if self.workers.is_main and phase.reports:
            final = at.epoch == phase.epochs
            if (phase.first + at.epoch) % training.validate_every == 0 or final:
                row |= phase.validate()
            if sums[3]:
                self.reporter.warn(f"epoch {row['epoch']}: {sums[3]:.0f} batches were skipped, they were not finite")
            try:
                self.start.metrics.append(row)
            except UserError as error:
                self.reporter.warn(f"{error}; training continues, and writes it later")
            self.reporter.epoch(row)
            if (phase.first + at.epoch) % training.picture_every == 0 or final:
                self.reporter.pictures(self.start.average, self.start.splits.validation, at.step)
        self._save(phase)

    def _save(self, phase: Phase) -> None:
        """Write the state; if that fails, warn and keep the state before it."""
        self.saved = time.monotonic()
        state = phase.state() if self.workers.is_main or self.workers.sharded else {}
        self.start.states[phase.name] = state
        if self.workers.is_main:
            held = {"run": self.start.identity, "recipe": self.recipe.to_toml(), "random": random_states()}
            held |= {"initial": self.start.initial, "phases": self.start.states}
            try:
                save_state(self.start.folder, held)
            except UserError as error:
                self.reporter.warn(f"{error}; the state before it is kept; training continues")
