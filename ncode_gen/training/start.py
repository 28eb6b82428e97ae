"""How a run starts: its model and phases, and the state that it goes on from.

A phase of the state that the recipe still has, with nothing changed that it depends on, is restored; the first one that
is not complete, or not there, is where training continues, and those after it begin anew.
"""

import copy
import tomllib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Recipe, changed_keys
from ..config.earlier import is_earlier
from ..data import Splits
from ..distributions import LatentModel, build_model, check_fits
from ..errors import UserError
from ..runfolder.records import JsonLines, read_record
from ..runfolder.run import (
    ENVIRONMENT,
    METRICS,
    RECIPE,
    load_run,
    record_environment,
    record_files,
    run_identity,
    weights_digest,
)
from ..runfolder.state import STATE, load_state
from ..runtime.device import computes_in_bf16
from ..runtime.environment import describe_environment
from ..runtime.files import check_links, write_text
from ..runtime.seeding import restore_random_states
from ..runtime.workers import Workers
from .earlier import translated_state
from .phase import Context, Phase
from .phases import phases_of
from .reporter import Reporter
from .warm_start import take_weights


class Start:
    """A run at its start: its model, its folder, and the phases that it goes through.

    Args:
        recipe: the model.
        splits: the images.
        folder: run folder.
        device: where to train.
        callback: called now and then in long work; what it raises ends the work.
        quiet: whether to print nothing but errors and what was lost.
        workers: the processes that share each batch.
        init: run whose weights a training that begins starts from; none if empty.

    Attributes:
        average: the model with averaged weights.
        phases: the phases.
        states: what a state holds of each phase that has begun.
        identity: identity of the run.
        metrics: the rows of metrics.jsonl.
        initial: the weights of another run that this one began from, which later phases still need.
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        folder: Path,
        device: torch.device,
        callback: Callable[[], None],
        *,
        quiet: bool,
        workers: Workers,
        init: str = "",
    ) -> None:
        self.recipe, self.splits, self.folder, self.device, self.workers = recipe, splits, folder, device, workers
        batch = batch_size(recipe, len(splits.train), workers.count)
        check_recipe_fits(recipe, len(splits.train), batch, workers.count)
        check_fits(recipe, splits.train.shape, device, workers.count if workers.sharded else 1)
        self.reporter = Reporter(folder, batch, quiet=quiet, writes=workers.is_main)
        torch.manual_seed(recipe.seed)
        # Shares of a weight must be contiguous.
        layout = torch.contiguous_format if workers.sharded else torch.channels_last
        model = build_model(recipe, splits.train.shape).to(device).to(memory_format=layout)
        self.model, self.init, self.initial = model, init, dict[str, Tensor]()
        if recipe.training.precision == "bf16" and not computes_in_bf16(device):
            model.compute_in(None)
            self.reporter.log("This CPU has no native bf16; training in float32.")
        self.average: LatentModel = copy.deepcopy(model).eval().requires_grad_(False)
        # Half precision is for gradients; scores, and what later phases learn from, are as they will be later.
        self.average.compute_in(None)
        quiet = quiet or not workers.is_main
        self.context = Context(
            recipe, splits, self.average, model.precision, device, workers, batch, self.reporter.log, callback, quiet
        )
        self.phases = phases_of(self.context, model)
        self.identity, self.states = "", dict[str, Any]()
        self.metrics = JsonLines(folder / METRICS)

    def begin(self, resume: bool) -> list[Phase]:
        """Take over the state of the folder, if training continues; return the phases still to be completed."""
        if resume:
            check_links(self.folder)
        state = load_state(self.folder) if resume else None
        known = run_identity(self.folder) if resume else None
        if known is not None:
            self._check_init(read_record(self.folder / ENVIRONMENT).get("init", ""))
        self.identity = known or uuid.uuid4().hex
        if state is not None:
            if not {"run", "recipe"} <= state.keys():
                raise UserError(
                    f"the state in {self.folder} was written by another version of ncode_gen; train from scratch"
                )
            self.identity = state["run"]
            if known not in (None, self.identity):
                raise UserError(
                    f"the state in {self.folder} belongs to another run ({self.identity}) than the rest ({known}); put "
                    f"its own back, or remove {self.folder / STATE.parent} to train from the beginning"
                )
            left = self._take_over(dict(state))
            self._log_changes(str(state["recipe"]), state.notice, left)
        else:
            left = self.phases
            if resume:
                self.reporter.warn(f"{self.folder} holds no state yet; training starts from the beginning")
            if self.init:
                self._warm_start()
        step = max(phase.at.step for phase in self.phases)
        self.reporter.begin(step)
        if self.workers.is_main:
            environment = describe_environment(self.device, self.recipe.seed) | {"processes": self.workers.count}
            if self.init and state is None:
                environment |= {"init": self.init, "init_digest": weights_digest(self.init)}
            write_text(self.folder / RECIPE, self.recipe.to_toml())
            record_files(self.folder, self.splits)
            record_environment(self.folder, environment, self.identity)
            self.metrics = JsonLines(self.folder / METRICS, self.identity)
            # Rows of epochs after the state's are written again when they are done again.
            self.metrics.keep(lambda row: row.get("step", 0) <= step)
        return left

    def _check_init(self, began: str) -> None:
        """Take over from which run this one began, "" for none; raise a `UserError`, if another is named."""
        if self.init not in ("", began):
            what = f"began from {began}" if began else "began from no other run"
            raise UserError(f"the run in {self.folder} {what}; leave --init out, or name another folder with --out")
        self.init = began

    def _warm_start(self) -> None:
        """Take over the weights of another run, as far as they fit."""
        source = load_run(self.init)
        self.initial = {name: value.detach() for name, value in source.named_parameters()}
        for model in (self.model, self.average):
            kept = take_weights(model, self.initial)
        anew = f"; these start anew: {', '.join(kept)}" if kept else ""
        self.reporter.log(f"Starting from the weights of {self.init}{anew}.")

    def _take_over(self, state: dict[str, Any]) -> list[Phase]:
        """Restore the phases of a state, and return those that are still to be completed.

        Raises:
            UserError: it belongs to another model than the recipe, or to one whose epochs cannot be changed any more.
        """
        earlier = Recipe.parse(state["recipe"], f"the state of {self.folder}", stored=True)
        names = dict(self.average.named_parameters())
        self.initial = state.get("initial", {})
        if self.initial:  # for the phases that have not begun
            for model in (self.model, self.average):
                take_weights(model, self.initial)
        state = translated_state(state, earlier, len(self.splits.train), names)
        for number, phase in enumerate(self.phases):
            held = state["phases"].get(phase.name)
            if held is None or not phase.continues(earlier):
                return self.phases[number:]
            if held.get("moments", {}) is None and held["progress"]["epoch"] < phase.epochs:
                raise UserError(
                    f"an earlier version wrote the state in {self.folder} without the optimiser of its first "
                    f"{held['progress']['epoch']} epochs; leave training.epochs there, or train from scratch"
                )
            try:
                phase.begin(resumed=True)
                phase.restore(held)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                raise UserError(
                    f"the state in {self.folder} belongs to another model than its recipe ({reason})"
                ) from None
            phase.ready, self.states[phase.name] = True, held
            if phase.at.epoch < phase.epochs:
                restore_random_states(state["random"])
                return self.phases[number:]
        return []

    def prepare(self, phase: Phase) -> None:
        """Let a phase begin, if it was not restored."""
        number = self.phases.index(phase)
        if not phase.ready:
            phase.at.step = phase.at.begun = self.phases[number - 1].at.step if number else 0
            phase.begin(resumed=False)
            phase.ready = True

    def epochs_done(self) -> int:
        """Return how many epochs were trained."""
        return max(phase.first + phase.at.epoch for phase in self.phases if phase.reports)

    def _log_changes(self, before: str, notice: str, left: list[Phase]) -> None:
        """Say what is not as it was when the state was written."""
        if notice:
            self.reporter.warn(notice)
        if is_earlier(tomllib.loads(before)):
            self.reporter.log(f"An earlier version wrote {self.folder}; {RECIPE} is rewritten in today's keys.")
        # Keys that newer versions know have their defaults, here as there.
        earlier = Recipe.parse(before, f"the state of {self.folder}", stored=True).to_toml()
        for key, (was, now) in changed_keys(tomllib.loads(earlier), tomllib.loads(self.recipe.to_toml())).items():
            self.reporter.warn(f"continuing with {key} = {now!r}, before it was {was!r}")
        if not any(phase.reports for phase in left):
            own = "epochs" if self.recipe.observation.pixelwise else "reflow"
            key = f"observation.{own}" if self.recipe.observation.phase_epochs else "training.epochs"
            self.reporter.log(f"Already trained for {self.recipe.epochs} epochs; raise {key} to continue.")


def batch_size(recipe: Recipe, images: int, processes: int) -> int:
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


def check_recipe_fits(recipe: Recipe, images: int, batch: int, processes: int) -> None:
    """Refuse what cannot be trained with so many images and processes, before anything is trained.

    Raises:
        UserError: a loss of the whole batch is to be shared or has too few images, or the prior has.
    """
    whole, least = recipe.objective.whole_batch, recipe.objective.least_batch
    if processes > 1 and whole:
        raise UserError(f"{whole} is a loss of the whole batch, which {processes} processes cannot share; use one")
    if batch < least:
        raise UserError(f"{whole} compares the images of a batch and needs at least {least}, got {batch}")
    needed = recipe.prior.least_images()
    if images < min(needed, 2):
        raise UserError(f"{images} training image is too few for a prior that is fitted; use more images")
    if images < needed:
        raise UserError(
            f"{images} training images are too few for a prior with prior.components = {needed}; set "
            f"prior.components to at most {images}, or use more images"
        )
