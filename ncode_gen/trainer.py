"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autoencoder import LatentModel, LearnedStart, build_model
from .data import Images, Splits
from .errors import UserError
from .files import append_json_line, write_text
from .objective import CompiledLoss, make_loss
from .progress import Reporter, track
from .recipe import Recipe
from .run import RECIPE, describe_environment, load_state, record_environment, save_state, save_weights
from .solvers import FIXED, random_grid

__all__ = ["Interrupted", "fit_prior", "make_optimiser", "make_step", "train"]

COMPILE_FROM = 5000
COMPILED_AFTER = 20
REPORT_EVERY = 20
VALIDATION_IMAGES = 2000
PRIOR_LATENTS = 60000

Step = Callable[[Tensor, float, float, torch.Generator], Tensor]


class Interrupted(Exception):
    """Training was stopped by the user, after its state was saved."""


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Return the rate at a step: a linear rise, then half a cosine down to zero.

    >>> round(learning_rate(Recipe(), 100, 100), 6)
    0.0
    """
    rise = max(1, round(recipe.training.warmup * total))
    if step < rise:
        return recipe.training.rate * (step + 1) / rise
    return recipe.training.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def update_average(average: LatentModel, model: LatentModel, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones; the decay grows from 0.1, so early weights are forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def make_optimiser(model: LatentModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe."""
    # A prior that is fitted afterwards is none of the optimiser's, so that a run may be resumed with another one.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=recipe.training.rate, weight_decay=recipe.training.decay, betas=(0.9, 0.99), fused=True
    )


def make_step(
    model: LatentModel,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    *,
    compiled: bool,
    tell: Callable[[str], None],
    plain_steps: int = 0,
) -> Step:
    """Return one training step: (images, learning rate, weight of the KL term, random numbers) -> sums to report.

    Args:
        model: the model that is trained.
        recipe: its recipe.
        optimiser: its optimiser.
        compiled: whether the loss is compiled.
        tell: where one line about the compilation goes.
        plain_steps: steps that are taken before it is compiled.

    Returns:
        A function whose result is (loss, nats, norm of the gradient), shape (3,).
    """
    loss_of = make_loss(model, recipe)
    if compiled:
        loss_of = CompiledLoss(loss_of, tell, plain_steps)
    limit = recipe.training.clip or math.inf

    def step(images: Tensor, rate: float, beta: float, generator: torch.Generator) -> Tensor:
        for group in optimiser.param_groups:
            group["lr"] = rate
        target, noise, grid = _random_inputs(model, images, recipe, generator)
        loss, nats = loss_of(target, noise, torch.tensor(beta, device=images.device), grid)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimiser.step()
        return torch.stack([loss.detach(), nats, norm])

    return step


@dataclass
class Progress:
    """Where training stands: the next step is batch `batch` of epoch `epoch`."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    quiet: bool = False,
) -> LatentModel:
    """Train the model of a recipe into a run folder.

    Args:
        recipe: the model.
        splits: the images.
        folder: run folder; made if absent.
        device: where to train.
        resume: go on from the state in the folder.
        quiet: print nothing but errors.

    Returns:
        The model with averaged weights and fitted prior, in eval mode.

    Raises:
        UserError: the loss is not finite, the state does not fit the recipe, or the folder cannot be written.
        Interrupted: Ctrl-C; the state was saved.
    """
    # Set-up.
    torch.manual_seed(recipe.seed)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = build_model(recipe, splits.train.shape).to(device).to(memory_format=torch.channels_last)
    average: LatentModel = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = make_optimiser(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    at = Progress()
    if resume:
        at = _restore(folder, model, average, optimiser, generator)
    write_text(folder / RECIPE, recipe.to_toml())
    record_environment(folder, describe_environment(device, recipe.seed), resume=resume)

    batch = min(recipe.training.batch, len(splits.train))
    per_epoch = len(splits.train) // batch
    total = per_epoch * recipe.training.epochs
    reporter = Reporter(folder, total, batch, quiet=quiet)
    setting = recipe.training.compile
    compilable = recipe.flow.loop != "iaf" and all(flow.solver.method in FIXED for flow in model.flows)
    compiled = setting == "on" or (setting == "auto" and compilable and total >= COMPILE_FROM)
    plain_steps = max(0, min(COMPILED_AFTER, total // 20) - at.step)
    step = make_step(model, recipe, optimiser, compiled=compiled, tell=reporter.tell, plain_steps=plain_steps)
    nfe = _evaluations(average, splits.validation, batch)

    with reporter, _interruptible() as asked_to_stop:
        try:
            while at.epoch < recipe.training.epochs:
                started, sums, counted = time.perf_counter(), torch.zeros(3, device=device), 0
                for images in _epoch(splits.train, batch, at, recipe.seed, device):
                    rate, beta = learning_rate(recipe, at.step, total), _beta(recipe, at.step, total)
                    sums += step(images, rate, beta, generator)
                    counted += 1
                    last = counted % REPORT_EVERY == 0 or at.batch + 1 == per_epoch
                    if last and not bool(torch.isfinite(sums).all()):
                        raise UserError(
                            f"the loss is not finite at step {at.step} (learning rate {rate:.2g}); "
                            "lower training.rate or training.clip, or look for damaged images",
                            code=1,
                        )
                    update_average(average, model, recipe.training.ema, at.step)
                    at.step += 1
                    at.batch += 1
                    if last:
                        reporter.step(at.step, at.epoch, float(sums[0] / counted), nfe)
                    if asked_to_stop():
                        raise KeyboardInterrupt

                # Housekeeping.
                at.epoch, at.batch = at.epoch + 1, 0
                seconds = time.perf_counter() - started
                row = {
                    "step": at.step,
                    "epoch": at.epoch,
                    "loss": float(sums[0] / counted),
                    "train_nats": float(sums[1] / counted),
                    "gradient_norm": float(sums[2] / counted),
                    "rate": rate,
                    "beta": beta,
                    "nfe": nfe,
                    "images_per_second": counted * batch / seconds,
                    "seconds": seconds,
                }
                if at.epoch % recipe.training.validate_every == 0 or at.epoch == recipe.training.epochs:
                    nfe = row["nfe"] = _evaluations(average, splits.validation, batch)
                    row |= validate(average, splits.validation, recipe, device)
                append_json_line(folder / "metrics.jsonl", row)
                reporter.epoch(row)
                if at.epoch % recipe.training.picture_every == 0 or at.epoch == recipe.training.epochs:
                    reporter.pictures(average, splits.validation, at.step)
                _save(folder, model, average, optimiser, generator, at)
        except KeyboardInterrupt:
            _save(folder, model, average, optimiser, generator, at)
            raise Interrupted from None

    fit_prior(average, splits.train, recipe.seed, device, quiet=quiet)
    save_weights(folder, average)
    return average


def validate(model: LatentModel, images: Images, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Return validation scores: nats with the recipe's solver, and how far they move when it is refined."""
    scores: dict[str, float] = {}
    some = images.first(VALIDATION_IMAGES, device)
    generator = torch.Generator()
    with torch.no_grad():
        if isinstance(model.posterior, LearnedStart):
            target = model.likelihood.target(
                some, torch.rand(some.shape, generator=generator.manual_seed(0)).to(device)
            )
            return {"validation_nats": -float(model.autoencoding(target)[0].mean())}

        def elbo(steps: int | None) -> float:
            bounds = model.bounds(some, 1, generator.manual_seed(0), steps=steps, budget=recipe.training.batch)
            return float(torch.cat([bound for bound, _ in bounds]).mean())

        coarse = elbo(None)
        scores["validation_nats"] = -coarse
        if model.flows and all(flow.solver.method in FIXED for flow in model.flows):
            finer = 2 * max(flow.solver.steps for flow in model.flows)
            scores["solver_gap_nats"] = coarse - elbo(finer)
    return scores


def fit_prior(model: LatentModel, images: Images, seed: int, device: torch.device, *, quiet: bool = True) -> None:
    """Fit the prior, if it is to be fitted, to posterior draws of the training images."""
    if not model.prior.fits:
        return
    generator = torch.Generator().manual_seed(seed + 2)
    latents, seen = [], 0
    for batch in images.batches(500, device=device):
        latents.append(model.draw(batch, generator).cpu())
        seen += len(batch)
        if seen >= PRIOR_LATENTS:
            break
    with track("prior", 100, quiet=quiet) as shown:
        done = 0

        def progress(share: float) -> None:
            nonlocal done
            shown.advance(int(100 * share) - done)
            done = int(100 * share)

        model.prior.fit(torch.cat(latents), seed, progress)


def _beta(recipe: Recipe, step: int, total: int) -> float:
    rise = recipe.objective.warmup * total
    return recipe.objective.beta * min(1.0, (step + 1) / rise if rise > 0 else 1.0)


def _evaluations(model: LatentModel, images: Images, batch: int) -> int:
    """Return the evaluations of the field in one pass of a batch; 0 without a flow."""
    return model.trajectory(images.first(batch, model.device), torch.tensor([0.0, 1.0])).nfe


def _epoch(images: Images, batch: int, at: Progress, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the batches of an epoch that are still to come, in an order that seed and epoch decide."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1_000_003 * seed + at.epoch))
    full = len(images) // batch * batch
    return images.batches(batch, order[at.batch * batch : full], device)


def _random_inputs(
    model: LatentModel, images: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw all random numbers of a step outside of the compiled part: target, noise and time grid."""
    uniform = torch.rand(images.shape, generator=generator).to(images.device)
    target = model.likelihood.target(images, uniform).contiguous(memory_format=torch.channels_last)
    particles = recipe.objective.particles
    noise = torch.randn(images.shape[0], particles, model.dim, generator=generator).to(images.device)
    if not model.flows or any(flow.solver.method not in FIXED for flow in model.flows):
        return target, noise, None
    jitter = 1.0 if recipe.flow.grid == "random" else 0.0
    return target, noise, random_grid(recipe.flow.steps, generator=generator, jitter=jitter).to(images.device)


def _save(
    folder: Path,
    model: LatentModel,
    average: LatentModel,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    at: Progress,
) -> None:
    save_state(
        folder,
        {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "generator": generator.get_state(),
            "progress": vars(at),
        },
    )


def _restore(
    folder: Path,
    model: LatentModel,
    average: LatentModel,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Progress:
    state: dict[str, Any] = load_state(folder)
    try:
        for held, key in ((model, "model"), (average, "average")):
            # A prior is fitted when training is done, so a finished run may be resumed with another one.
            trained: dict[str, Tensor] = state[key]
            if held.prior.fits:
                trained = {name: value for name, value in trained.items() if not name.startswith("prior.")}
                trained |= {name: value for name, value in held.state_dict().items() if name.startswith("prior.")}
            held.load_state_dict(trained)
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        return Progress(**state["progress"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the state in {folder} belongs to another model than its recipe ({reason})") from None


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request that is met between two steps, so that no step is half done."""
    import signal
    import threading

    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
