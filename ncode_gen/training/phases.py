"""The phases of training: the model, the flow of its observation, and the prior."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..config import ObservationSection, Recipe
from ..data import Images
from ..distributions import LatentModel, Refined, Refiner
from ..distributions.priors import LabelledPrior, Prior
from ..errors import UserError
from ..runtime.progress import track
from ..runtime.seeding import seeded
from ..solvers import has_fixed_steps, random_grid
from .image_phase import ImagePhase, context_labels
from .phase import Context, Phase
from .reflow import ReflowPhase
from .step import StepSettings
from .validation import evaluations, validate, validate_matching, validate_refiner

SCALED_BY, AT_A_TIME, IN_MEMORY = 2000, 500, 2**30
# Keys of a refined observation that may change while it is trained, or afterwards.
FREE: dict[str, Any] = {"epochs": 1, "lr": 1.0, "steps": 1, "alpha": 0.5, "zero_mean_residual": False}
PRIOR_LATENTS, PRIOR_LR, PRIOR_WARMUP, PRIOR_CLIP, PRIOR_DECAY = 60000, 1e-3, 100, 10.0, 0.999


def phases_of(context: Context, model: LatentModel) -> list[Phase]:
    """Return the phases of a recipe in their order.

    Args:
        context: what they have in common.
        model: the model with fresh weights, of which `context.average` is a copy.
    """
    phases: list[Phase] = [ModelPhase(context, model)]
    observation = context.recipe.observation
    if observation.phase_epochs and observation.pixelwise:
        phases.append(RefinerPhase(context))
    if context.average.prior.fitted_after:
        phases.append(PriorPhase(context))
    if observation.phase_epochs and not observation.pixelwise:
        phases.append(ReflowPhase(context))
    return phases


class ModelPhase(ImagePhase):
    """Encoder, posterior, observation and what else is trained with them.

    Args:
        context: what phases have in common.
        model: the model with fresh weights.
    """

    name, first = "model", 0

    def __init__(self, context: Context, model: LatentModel) -> None:
        super().__init__(context)
        recipe = context.recipe
        self.model, self.objective = model, recipe.objective.build(model)
        self.epochs, self.lr, self.warmup = recipe.training.epochs, recipe.training.lr, recipe.training.warmup
        self.nfe = evaluations(context.average, context.splits.validation, self.batch)

    def compilable(self) -> bool:
        """Return whether the compiler takes the loss whole."""
        fixed = all(has_fixed_steps(flow.options.method) for flow in self.model.flows)
        recipe = self.context.recipe
        # The convolutions of a flow of pixels are a library's, which on a CPU the compiler makes no faster.
        slow = recipe.objective.matching and self.context.device.type == "cpu"
        return fixed and recipe.posterior.kind != "iaf" and not slow

    def begin(self, *, resumed: bool) -> None:
        """Set up the update."""
        if not resumed:
            some = self.context.splits.train.first(SCALED_BY)
            for model in (self.model, self.context.average):
                model.observation.take_scale(some.to(model.device))
        average, observation = self.context.average, self.context.average.observation
        paths = ["encoder", "posterior"] if average.prior.fitted_after else ["encoder", "posterior", "prior"]
        names = [name for name, _ in observation.named_children() if name != observation.own_phase]
        paths += [f"observation.{name}" for name in names]
        self.parts = {path: (self.model.get_submodule(path), average.get_submodule(path)) for path in paths}
        self._start(self.model, average, self.objective, self._settings(), seed=1)

    def arguments(self, images: Tensor, numbers: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return target, noise, weight of the KL term and time grid of each part."""
        recipe, workers = self.context.recipe, self.context.workers
        count, device = len(images) * workers.count, images.device
        uniform = None
        if recipe.objective.uses_stochastic_targets:
            uniform = workers.part(torch.rand(count, *images.shape[1:], generator=self.generator)).to(device)
        target = self.model.observation.target(images, uniform).contiguous(memory_format=torch.channels_last)
        shape = (count, self.objective.particles, self.model.dim)
        noise = workers.part(torch.randn(shape, generator=self.generator)).to(device)
        grid = None
        if self.model.flows and all(has_fixed_steps(flow.options.method) for flow in self.model.flows):
            random = getattr(recipe.flow, "grid", "even") == "random"
            steps = getattr(recipe.flow, "steps", 0) or max(flow.options.steps for flow in self.model.flows)
            grid = random_grid(steps, generator=self.generator, jitter=1.0 if random else 0.0).to(device)
        weight = torch.tensor(self.objective.weight(*self.position()), device=device)
        parts = recipe.training.accumulate
        known = context_labels(self.context)
        labels = None if known is None else known[numbers]
        drawn = self.objective.draw(target, labels, self.generator, workers)
        chunks = zip(*(part.chunk(parts) for part in (target, noise, *drawn)), strict=True)
        return [(part[0], part[1], weight, *(part[2:] if drawn else (grid,))) for part in chunks]

    def row(self, loss: float, figure: float) -> dict[str, Any]:
        """Return loss, nats, evaluations of the field and weight of the KL term."""
        if self.context.recipe.objective.matching:
            return {"loss": loss, "kl_nats": figure, "beta": self.objective.weight(*self.position(1))}
        return {"loss": loss, "train_nats": figure, "nfe": self.nfe, "beta": self.objective.weight(*self.position(1))}

    def validate(self) -> dict[str, Any]:
        """Return nats of held-out images, and the evaluations of the field now."""
        context = self.context
        self.nfe = evaluations(context.average, context.splits.validation, self.batch)
        if context.recipe.objective.matching:
            return {"nfe": self.nfe, **validate_matching(context.average, context.splits.validation, context.device)}
        scores = validate(context.average, context.splits.validation, context.recipe, context.device)
        return {"nfe": self.nfe, **scores}


class RefinerPhase(ImagePhase):
    """The refiner: flow matching from the trained model's decoder means to the images; the figure is the loss."""

    name = "observation"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.section = context.recipe.observation
        self.epochs, self.lr = self.section.phase_epochs, self.section.values()["lr"]
        self.first, self.warmup = context.recipe.training.epochs, context.recipe.training.warmup

    @cached_property
    def known(self) -> tuple[Tensor, Tensor] | None:
        """The latents and decoder means of all training images, where they can be cached."""
        return cache_reconstructions(self.context)

    @property
    def refiner(self) -> Refiner:
        """The refiner with averaged weights."""
        observation = self.context.average.observation
        assert isinstance(observation, Refined)
        return observation.refiner

    def continues(self, earlier: Recipe) -> bool:
        """Return whether an earlier recipe has this refiner."""
        before = earlier.observation
        if earlier.training.epochs > self.first:
            raise UserError(
                f"the refiner was trained after {earlier.training.epochs} epochs, so training.epochs cannot become "
                f"{self.first}; raise it, or train from scratch"
            )
        here, there = ({**section.values(), **FREE, "kind": section.kind} for section in (self.section, before))
        return here == there

    def begin(self, *, resumed: bool) -> None:
        """Take the scale of the residual; encoder, decoder and flow are their average from here."""
        refiner = self.refiner
        if not resumed:
            scale_refiner(refiner, self.context.average, self.context.splits.train, self.context.recipe.seed)
            refiner.fitted.fill_(True)
        trained = copy.deepcopy(refiner).requires_grad_(True)
        trained.precision = self.context.precision
        self.parts = {"observation.refiner": (trained, refiner)}

        def loss(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            found = trained.loss(*arguments).mean()
            return found, found.detach()

        self._start(trained, refiner, loss, self._settings(), seed=4)

    def arguments(self, images: Tensor, numbers: Tensor) -> list[tuple[Tensor | None, ...]]:
        """Return images, decoder means, latents, noise and times of each part."""
        model, workers = self.context.average, self.context.workers
        count, device = len(images) * workers.count, images.device
        if self.known is not None:
            latents, means = (known[numbers].to(device).float() for known in self.known)
        else:
            noise = workers.part(torch.randn(count, model.dim, generator=self.generator))
            latents = model.sample_posterior(images, noise=noise)
            means = model.decode(latents)
        noise = workers.part(torch.randn(count, *images.shape[1:], generator=self.generator)).to(device)
        times = workers.part(torch.rand(count, generator=self.generator)).to(device)
        given = (images, means, latents, noise, times)
        return list(zip(*(tensor.chunk(self.context.recipe.training.accumulate) for tensor in given), strict=True))

    def row(self, loss: float, figure: float) -> dict[str, Any]:
        """Return the flow-matching loss."""
        return {"flow_matching": loss}

    def validate(self) -> dict[str, Any]:
        """Return the flow-matching loss of held-out images."""
        context = self.context
        return validate_refiner(context.average, self.refiner, context.splits.validation, context.device)


class PriorPhase(Phase):
    """The prior that is fitted to the trained model's latents of the training images; the main process alone does it.

    It has one epoch, or none without updates; what an epoch counts as an image is an update here.
    """

    name, reports = "prior", False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        recipe = context.recipe
        self.first = recipe.epochs if recipe.observation.pixelwise else recipe.training.epochs
        self.lr = PRIOR_LR
        self.batch, self.images = 1, context.average.prior.iterations
        self.epochs, self.warmup = int(self.images > 0), PRIOR_WARMUP / max(1, self.images)

    @property
    def shared(self) -> bool:
        """Whether all processes take part."""
        return False

    def compilable(self) -> bool:
        """Return whether the loss is compiled: a fit is too short for it."""
        return False

    def continues(self, earlier: Recipe) -> bool:
        """Return whether an earlier recipe has this prior, of this model."""
        here, there = (
            (one.prior, _of_codes(one.observation), one.training.epochs) for one in (self.context.recipe, earlier)
        )
        return here == there

    def begin(self, *, resumed: bool) -> None:
        """Find the latents, and fit what needs no updates."""
        context, prior = self.context, self.context.average.prior
        if not resumed:
            with track("prior", 100, quiet=context.quiet) as bar:

                def progress(share: float) -> None:
                    context.callback()
                    bar.advance(int(100 * share) - bar.done)

                prior.fit(self.latents, context.recipe.seed, progress)
        trained: Prior = copy.deepcopy(prior).requires_grad_(True)
        trained.compute_in(context.precision)
        self.parts = {"prior": (trained, prior)}
        if self.epochs:

            def loss(*batch: Tensor) -> tuple[Tensor, Tensor]:
                found = trained.loss(*batch)
                return found, found.detach()

            self._start(trained, prior, loss, StepSettings(grad_clip=PRIOR_CLIP), seed=2, ema=PRIOR_DECAY)

    @cached_property
    def latents(self) -> Tensor:
        """Posterior samples of the training images, (n, d), on the CPU."""
        return posterior_latents(self.context)

    @cached_property
    def pairs(self) -> Callable[[int], tuple[Tensor, ...]]:
        """What an update learns from, by its number."""
        prior, recipe = self.context.average.prior, self.context.recipe
        if not isinstance(prior, LabelledPrior):
            return prior.pairs(self.latents, recipe.seed)
        labels = context_labels(self.context)
        if labels is not None:
            labels = labels[:PRIOR_LATENTS].repeat(len(self.latents) // min(len(labels), PRIOR_LATENTS))
        return prior.pairs(self.latents, recipe.seed, labels=labels)

    def batches(self, sizes: list[list[int]]) -> Iterator[tuple[list[tuple[Tensor | None, ...]], int]]:
        """Yield pairs of base and latents with times, by the number of the update."""
        for number in range(self.at.seen, self.at.seen + sum(map(sum, sizes))):
            given = [part.to(self.context.device) for part in self.pairs(number)]
            yield [(*given, torch.rand(len(given[0]), generator=self.generator).to(self.context.device))], 1

    def end(self) -> None:
        """Take over that the prior is fitted."""
        self.context.average.prior.finish()


def _of_codes(section: ObservationSection) -> dict[str, Any]:
    """Return the keys of an observation that its codes may depend on: not the solver of pixels."""
    free = () if section.pixelwise else ("method", "steps", "shift", "reflow", "reflow_lr")
    return {"kind": section.kind, **{key: value for key, value in section.values().items() if key not in free}}


def posterior_latents(context: Context) -> Tensor:
    """Return a posterior sample of the training images, at most 60,000, (n, d), on the CPU.

    Where images are mirrored in training, those of the mirrored ones follow.
    """
    model, images, generator = context.average, context.splits.train, seeded(context.recipe.seed + 2)
    latents: list[Tensor] = []
    for mirrored in (False, True)[: 1 + context.recipe.data.flip]:
        for batch in images.batches(AT_A_TIME, torch.arange(min(len(images), PRIOR_LATENTS)), context.device):
            latents.append(model.sample_posterior(batch.flip(3) if mirrored else batch, generator).cpu())
            context.callback()
    return torch.cat(latents)


def scale_refiner(refiner: Refiner, model: LatentModel, images: Images, seed: int) -> None:
    """Let a refiner take the scale of a model's latents and residuals from some images."""
    generator = seeded(seed + 3)
    some = torch.randperm(len(images), generator=generator)[:SCALED_BY]
    chosen = torch.cat(list(images.batches(AT_A_TIME, some, model.device)))
    latents = model.sample_posterior(chosen, generator)
    refiner.take_scale(chosen, model.decode(latents), latents)


def cache_reconstructions(context: Context) -> tuple[Tensor, Tensor] | None:
    """Encode and decode all training images once, if they always have the same latents and memory is enough.

    Returns:
        The latents (n, d) and the decoder means (n, C, H, W) in [0, 1], float16, on the CPU; None for a random
        posterior, or more than 1 GiB.
    """
    model, images = context.average, context.splits.train
    each = 2 * math.prod(images.shape) + 4 * model.dim
    if not model.posterior.deterministic or len(images) * each > IN_MEMORY:
        return None
    latents, means = [], []
    with track("reconstructions", len(images), quiet=context.quiet) as bar:
        for batch in images.batches(AT_A_TIME, device=model.device):
            latents.append(model.encode(batch))
            means.append(model.decode(latents[-1]).half().cpu())
            bar.advance(len(batch))
            context.callback()
    return torch.cat(latents).cpu(), torch.cat(means)
