"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import signal
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.recipe import Recipe, changed_keys
from ..data.sets import Splits
from ..distributions import LatentModel, build_model
from ..distributions.describe import check_fits
from ..errors import UserError
from ..runfolder.records import JsonLines
from ..runfolder.run import METRICS, RECIPE, record_environment, record_files, run_identity, save_weights
from ..runfolder.state import STATE, LoadedState, load_state, locked, save_state
from ..runtime.device import computes_in_bf16
from ..runtime.environment import describe_environment
from ..runtime.files import check_links, write_text
from ..runtime.seeding import seeded
from ..runtime.signals import StopRequest, heed_signals
from ..runtime.workers import ALONE, Workers
from ..solvers import has_fixed_steps
from .prior_fitting import fit_prior
from .refinement import RefinementStep, know_pictures, scale_refiner
from .reporter import Reporter
from .state import Progress, Training, of_another_model, take_weights
from .step import TrainingStep, learning_rate, update_average
from .validation import evaluations, validate, validate_refiner

__all__ = ["train"]

COMPILE_FROM = 5000
COMPILED_AFTER = 20
REPORT_EVERY = 20
SAVE_SECONDS = 300.0
# What may be another for a refiner that is trained already.
FREE: dict[str, Any] = {"epochs": 0, "rate": 0.0, "steps": 0, "stage": 0.0, "centred": False}


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    quiet: bool = False,
    workers: Workers = ALONE,
) -> LatentModel:
    """Train the model of a recipe into a run folder.

    Args:
        recipe: the model.
        splits: the images.
        folder: run folder; made if absent.
        device: where to train.
        resume: go on from the last good state in the folder, exactly; from the beginning, if there is none yet.
        quiet: print nothing but errors and what was lost.
        workers: the processes that share each batch; only the leading one writes.

    Returns:
        The model with averaged weights, trained refiner and fitted prior, in eval mode.

    Raises:
        UserError: too many losses in a row are not finite, the state does not fit the recipe, another process trains
            in the folder, or the folder cannot be written.
        Interrupted: a signal asked to stop; the state was saved.
    """
    with locked(folder) if workers.leads else contextlib.nullcontext(), heed_signals() as stop:
        loop = _Loop(recipe, splits, folder, device, stop, quiet=quiet, workers=workers)
        with loop.reporter:
            loop.begin(resume)
            while loop.at.epoch < recipe.training.epochs:
                loop.epoch()
            if recipe.refiner.kind != "none":
                loop.refine()
                if loop.at.epoch < recipe.epochs:
                    begun = f"the refiner is trained, in epochs {loop.at.epoch + 1} to {recipe.epochs}"
                    loop.reporter.begin_part(begun)
                while loop.at.epoch < recipe.epochs:
                    loop.epoch()
        average = loop.training.average
        if workers.leads:
            fit_prior(average, splits.train, recipe.seed, device, quiet=quiet, meanwhile=stop.meet)
            save_weights(folder, average, recipe, loop.at.epoch)
    return average


class _Loop:
    """The parts of a run and its epochs."""

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        folder: Path,
        device: torch.device,
        stop: StopRequest,
        *,
        quiet: bool,
        workers: Workers,
    ) -> None:
        torch.manual_seed(recipe.seed)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.recipe, self.splits, self.folder, self.device, self.workers = recipe, splits, folder, device, workers
        self.quiet, self.stop = quiet or not workers.leads, stop
        self.batch = _batch_size(recipe, len(splits.train), workers.count)
        check_fits(recipe, splits.train.shape, device, workers.count if workers.sharded else 1)
        self.per_epoch = len(splits.train) // self.batch
        self.total = self.per_epoch * recipe.training.epochs
        steps = self.per_epoch * recipe.epochs
        self._check_whole_batch()
        self._check_enough(len(splits.train))
        self.reporter = Reporter(folder, steps, self.batch, quiet=quiet, writes=workers.leads)
        # Shares of a weight must be contiguous.
        layout = torch.contiguous_format if workers.sharded else torch.channels_last
        model = build_model(recipe, splits.train.shape).to(device).to(memory_format=layout)
        if recipe.training.precision == "bf16" and not computes_in_bf16(device):
            model.precision = None
            self.reporter.tell(
                "this CPU has no arithmetic for bf16 and would need many times longer: training is in float32 here"
            )
        self.precision = model.precision
        average: LatentModel = copy.deepcopy(model).eval().requires_grad_(False)
        # Half precision is for gradients; scores, and what prior and refiner learn from, are as they will be later.
        average.precision = None
        setting = recipe.training.compile
        compilable = recipe.flow.loop != "iaf" and all(has_fixed_steps(flow.solver.method) for flow in model.flows)
        long = setting == "auto" and compilable and self.total >= COMPILE_FROM
        step = TrainingStep(
            model,
            recipe,
            compiled=not workers.sharded and (setting == "on" or long),
            tell=self.reporter.tell,
            plain_steps=min(COMPILED_AFTER, self.total // 20),
            workers=workers,
        )
        generator = seeded(recipe.seed + 1)
        self.training = Training(model, average, step, generator, Progress())
        self.identity = ""
        self.saved = time.monotonic()
        self.nfe = evaluations(average, splits.validation, self.batch)

    @property
    def at(self) -> Progress:
        """Where training stands."""
        return self.training.at

    def begin(self, resume: bool) -> None:
        """Take over the state of the folder, if training goes on, and write what is known at the start."""
        if resume:
            check_links(self.folder)
        state = load_state(self.folder) if resume else None
        known = run_identity(self.folder) if resume else None
        self.identity = known or uuid.uuid4().hex
        if state is not None:
            if not {"run", "recipe"} <= state.keys():
                raise UserError(f"the state in {self.folder} was written by another version of ncode_gen; train anew")
            self.identity = state["run"]
            if known not in (None, self.identity):
                raise UserError(
                    f"the state in {self.folder} belongs to another run ({self.identity}) than the rest ({known}); put "
                    f"its own back, or remove {self.folder / STATE.parent} to train from the beginning"
                )
            self._take_over(state)
            self._tell_changes(state)
        elif resume:
            self.reporter.warn(f"{self.folder} holds no state yet; training starts from the beginning")
        self.training.step.done_before(self.at.step - self.at.begun)
        self.reporter.begin(self.at.step)
        if not self.workers.leads:
            return
        environment = describe_environment(self.device, self.recipe.seed) | {"processes": self.workers.count}
        write_text(self.folder / RECIPE, self.recipe.to_toml())
        record_files(self.folder, self.splits)
        record_environment(self.folder, environment, self.identity)
        self.metrics = JsonLines(self.folder / METRICS, self.identity)
        # What was told of epochs after the state's is told again when they are done again.
        self.metrics.keep(lambda row: row.get("step", 0) <= self.at.step)

    def _check_whole_batch(self) -> None:
        """Refuse to part a batch whose loss is one of the whole batch, such as a distance between distributions."""
        objective, parts = self.recipe.objective, self.workers.count
        whole = 'objective.kind = "wae"' if objective.kind == "wae" else "objective.free_nats"
        if parts > 1 and (objective.kind == "wae" or objective.free_nats):
            raise UserError(f"{whole} is a loss of the whole batch, which {parts} processes cannot share; use one")
        if objective.kind == "wae" and self.batch < 2:
            raise UserError(f"{whole} compares the images of a batch and needs at least 2, got {self.batch}")

    def _check_enough(self, images: int) -> None:
        """Refuse a prior for which there are too few images, before anything is trained."""
        prior = self.recipe.prior
        if prior.kind == "normal" or prior.joint:
            return
        if images < 2:
            raise UserError(f"{images} training image is too few for a prior that is fitted; use more images")
        if images < prior.components:
            raise UserError(
                f"{images} training images are too few for a prior with prior.components = {prior.components}; set "
                f"prior.components to at most {images}, or use more images"
            )

    def _position(self) -> tuple[float, int]:
        """Return how far the present part of training is, and how long it is, in batches of the present size.

        Both come from images, so that a run that goes on with another batch goes on along the same schedule.
        """
        at, recipe = self.at, self.recipe
        done = at.epoch - recipe.training.epochs if self.training.refining else at.epoch
        epochs = recipe.refiner.epochs if self.training.refining else recipe.training.epochs
        return done * self.per_epoch + min(at.seen / self.batch, self.per_epoch), epochs * self.per_epoch

    def _rate(self, back: int = 0) -> float:
        """Return the learning rate, or that of some batches before."""
        recipe, (step, steps) = self.recipe, self._position()
        step = max(0.0, step - back)
        peak = recipe.refiner.rate if self.training.refining else recipe.training.rate
        return learning_rate(peak, recipe.training.warmup, step, steps)

    def _beta(self, back: int = 0) -> float:
        """Return the weight of the KL term, or that of some batches before."""
        objective, (step, steps) = self.recipe.objective, self._position()
        step, rise = max(0.0, step - back), objective.warmup * steps
        return objective.beta * min(1.0, (step + 1) / rise if rise > 0 else 1.0)

    def refine(self) -> None:
        """Begin to train the refiner, if that has not begun; encoder, decoder and flow are their average from here."""
        if self.training.refining:
            return
        recipe, average = self.recipe, self.training.average
        refiner = average.refiner
        assert refiner is not None
        scale_refiner(refiner, average, self.splits.train, recipe.seed)
        refiner.fitted.fill_(True)
        trained = copy.deepcopy(refiner).requires_grad_(True)
        trained.precision = self.precision
        steps = self.per_epoch * recipe.refiner.epochs
        setting = recipe.training.compile
        step = RefinementStep(
            trained,
            average,
            recipe,
            lambda: know_pictures(average, self.splits.train, quiet=self.quiet, meanwhile=self.stop.meet),
            compiled=not self.workers.sharded and (setting == "on" or (setting == "auto" and steps >= COMPILE_FROM)),
            tell=self.reporter.tell,
            plain_steps=min(COMPILED_AFTER, steps // 20),
            workers=self.workers,
        )
        generator = seeded(recipe.seed + 4)
        at = Progress(epoch=recipe.training.epochs, step=self.at.step, begun=self.at.step)
        self.training = Training(trained, average, step, generator, at, refining=True)

    def _take_over(self, state: LoadedState) -> None:
        """Take over the state of a run.

        Raises:
            UserError: it belongs to another model than the recipe, or to one whose epochs cannot be changed any more.
        """
        earlier, recipe = Recipe.parse(state["recipe"], f"the state of {self.folder}", stored=True), self.recipe
        progress = self._progress_of(earlier, state)
        if not state.get("refining", False):
            self.training.restore(state, self.folder, progress)
            return
        if earlier.training.epochs != recipe.training.epochs:
            raise UserError(
                f"{self.folder} trains its refiner already, so training.epochs must stay {earlier.training.epochs}, "
                f"got {recipe.training.epochs}; refiner.epochs may change, or train anew"
            )
        here, there = (dataclasses.replace(one.refiner, **FREE) for one in (recipe, earlier))
        if here == there:
            self.refine()
            self.training.restore(state, self.folder, progress)
            return
        # Another refiner, or none: what it learns from is there, and it begins anew.
        try:
            take_weights(self.training.average, state["average"], refined=False)
        except (KeyError, RuntimeError) as error:
            raise of_another_model(self.folder, error) from None
        # The updates of the refiner that was trained before are taken back.
        begun = self._progress_of(earlier, state)(state["progress"]).begun
        self.training.at = Progress(epoch=recipe.training.epochs, step=begun)

    def _progress_of(self, earlier: Recipe, state: LoadedState) -> Callable[[dict[str, Any]], Progress]:
        """Return what reads where training stood in a state, whose recipe is `earlier`."""
        images = len(self.splits.train)
        parts = earlier.training.accumulate
        batch = max(1, min(earlier.training.batch, images // parts * parts))
        begun = images // batch * earlier.training.epochs if state.get("refining", False) else 0
        return lambda held: Progress.restored(held, images, batch, begun)

    def _tell_changes(self, state: LoadedState) -> None:
        """Say what is not as it was when the state was written."""
        if state.notice:
            self.reporter.warn(state.notice)
        # Keys that newer versions know have their defaults, here as there.
        before = Recipe.parse(state["recipe"], f"the state of {self.folder}", stored=True).to_toml()
        changes = changed_keys(tomllib.loads(before), tomllib.loads(self.recipe.to_toml()))
        for key, (earlier, now) in changes.items():
            self.reporter.warn(f"going on with {key} = {now!r}; until now it was {earlier!r}")
        if self.at.epoch >= self.recipe.epochs:
            key = "training.epochs" if self.recipe.refiner.kind == "none" else "refiner.epochs"
            self.reporter.tell(f"all {self.recipe.epochs} epochs are done already; {key} says how many there are to be")

    def epoch(self) -> None:
        """Train to the end of an epoch, then validate, tell and save.

        Raises:
            Interrupted: a signal asked to stop, or its process group did; the state was saved.
            UserError: too many batches in a row were skipped.
        """
        at = self.at
        if at.seen and at.images != len(self.splits.train):
            # Another order, in which nobody knows what was seen.
            self.reporter.warn(
                f"{at.images} training images have become {len(self.splits.train)}: epoch {at.epoch + 1} begins anew"
            )
            at.seen, at.batches, at.sums = 0, 0, [0.0] * 4
        at.images = len(self.splits.train)
        started = time.perf_counter() - at.seconds
        sums = torch.tensor(at.sums, device=self.device)
        left = sum(map(len, self._sizes()))
        for number, (images, numbers) in enumerate(self._batches(), start=1):
            rate, updates = self._rate(), at.step - at.begun
            sums += self.training.step(images, rate, self._beta(), self.training.generator, numbers)
            update_average(self.training.averaged, self.training.model, self.recipe.training.ema, updates)
            at.step += 1
            at.batches += 1
            at.seen += len(images) * self.workers.count
            last = at.batches % REPORT_EVERY == 0 or number == left
            if last or self.device.type == "cpu":  # elsewhere, asking for a number waits for the device
                self._check_skipped(rate)
            if last:
                done = at.epoch * self.per_epoch + min(at.seen // self.batch, self.per_epoch)
                self.reporter.step(done, at.epoch, _means(sums.tolist(), at.batches)[0], self.nfe)
            if self._to_be_saved(last):
                at.sums, at.seconds = sums.tolist(), time.perf_counter() - started
                self._save()
                self.stop.meet()
        self._housekeeping(sums.tolist(), time.perf_counter() - started)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's parts of the batches that are still to come, with their indices in the training set.

        Seed and epoch decide their order, whatever the batch; images that do not fill the last batch are left out.
        """
        images, at = self.splits.train, self.at
        order = torch.randperm(len(images), generator=seeded(1_000_003 * self.recipe.seed + at.epoch))
        start, share = at.seen, self.workers.count
        for sizes in self._sizes():
            part = order[start : start + sum(sizes)]
            start += len(part)
            mine = self.workers.part(part.view(len(sizes), -1).T).T
            yield from zip(images.batches(sizes[0] // share, mine.flatten(), self.device), mine, strict=True)

    def _sizes(self) -> list[list[int]]:
        """Return the sizes of the batches of the epoch that are still to come, equal ones together.

        The last one is smaller where the epoch began with another batch, so that no image is lost by the change.
        """
        to_come = self.per_epoch * self.batch - self.at.seen
        full, rest = divmod(max(0, to_come), self.batch)
        rest -= rest % (self.workers.count * self.recipe.training.accumulate)
        if rest == 1 and self.recipe.objective.kind == "wae":  # which compares the images of a batch
            rest = 0
        return [sizes for sizes in ([self.batch] * full, [rest]) if sum(sizes)]

    def _to_be_saved(self, last: bool) -> bool:
        """Return whether to save, to stop or because it is time.

        Several processes agree on it every few steps, so that none waits for another.
        """
        late = time.monotonic() - self.saved > SAVE_SECONDS
        if self.workers.count > 1:
            if not last:
                return False
            wishes = self.workers.sum(torch.tensor([float(self.stop.number > 0), float(late)], device=self.device))
            if wishes[0] and not self.stop.number:
                self.stop.number = signal.SIGTERM
            late = bool(wishes[1])
        return self.stop.number > 0 or late

    def _check_skipped(self, rate: float) -> None:
        skipped, limit = int(self.training.step.skipped_in_a_row), self.recipe.training.max_skipped
        if skipped > limit:
            raise UserError(
                f"the loss, its gradient or a solve was not finite in {skipped} batches in a row, the last at step "
                f"{self.at.step} (learning rate {rate:.2g}); lower training.rate or training.clip, look for damaged "
                f"images, and go on from the state kept with --resume {self.folder}",
                code=1,
            )

    def _housekeeping(self, sums: list[float], seconds: float) -> None:
        """Validate, tell and save at the end of an epoch."""
        recipe, at, average = self.recipe, self.at, self.training.average
        loss, nats, norm = _means(sums, at.batches)
        row: dict[str, Any] = {"step": at.step, "epoch": at.epoch + 1, "images": at.seen}
        rates = {"rate": self._rate(1)} | ({} if self.training.refining else {"beta": self._beta(1)})
        at.epoch, at.seen, at.batches, at.sums, at.seconds = at.epoch + 1, 0, 0, [0.0] * 4, 0.0
        if not self.workers.leads:
            self._save()
            return
        if self.training.refining:
            row["matching"] = loss
        else:
            row |= {"loss": loss, "train_nats": nats, "nfe": self.nfe}
        row |= {
            "gradient_norm": norm,
            "skipped": int(sums[3]),
            "images_per_second": row["images"] / seconds,
            "seconds": seconds,
        } | rates
        final = at.epoch in (recipe.training.epochs, recipe.epochs)
        if at.epoch % recipe.training.validate_every == 0 or final:
            if self.training.refining:
                row |= validate_refiner(average, self.splits.validation, self.device)
            else:
                self.nfe = row["nfe"] = evaluations(average, self.splits.validation, self.batch)
                row |= validate(average, self.splits.validation, recipe, self.device)
        if sums[3]:
            self.reporter.warn(f"epoch {at.epoch}: {sums[3]:.0f} batches were skipped, they were not finite")
        try:
            self.metrics.append(row)
        except UserError as error:
            self.reporter.warn(f"{error}; training goes on, and writes it later")
        self.reporter.epoch(row)
        if at.epoch % recipe.training.picture_every == 0 or final:
            self.reporter.pictures(average, self.splits.validation, at.step)
        self._save()

    def _save(self) -> None:
        """Write the state; what cannot be written is told, and the state before is kept."""
        self.saved = time.monotonic()
        state = self.training.state() if self.workers.leads or self.workers.sharded else {}
        if self.workers.leads:
            try:
                save_state(self.folder, {"run": self.identity, "recipe": self.recipe.to_toml(), **state})
            except UserError as error:
                self.reporter.warn(f"{error}; the state before it is kept, and training goes on")


def _batch_size(recipe: Recipe, images: int, processes: int) -> int:
    """Return the images of a step, which its processes and parts share evenly.

    Raises:
        UserError: they cannot.
    """
    parts = processes * recipe.training.accumulate
    if recipe.training.batch % parts:
        raise UserError(
            f"training.batch = {recipe.training.batch} cannot be shared evenly by {processes} processes with "
            f"training.accumulate = {recipe.training.accumulate}; take a multiple of {parts}"
        )
    batch = min(recipe.training.batch, images // parts * parts)
    if batch == 0:
        raise UserError(f"{images} training images are too few for {parts} parts of a batch; use fewer processes")
    return batch


def _means(sums: list[float], batches: int) -> list[float]:
    """Return the means of loss, nats and gradient norm over the batches that were not skipped."""
    return [value / max(1.0, batches - sums[3]) for value in sums[:3]]
