"""The N-CODE flow prior: a controlled flow from noise to the latents, with its exact density."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...control import ControlledODE, LogDet, MLPField, Solver, StaticController
from ...errors import UserError
from ...runtime.seeding import seeded
from .coupling import coupled_batches
from .mixture import GaussianMixture
from .normal import Prior, refresh_after_loading, standard_normal_log_prob

__all__ = ["FlowPrior"]

BATCH, RATE, DECAY, LIMIT = 1024, 1e-3, 0.999, 10.0
CACHED = 1000


class FlowPrior(Prior):
    """A closed-loop flow from a base to the latents: the gains of the field's units follow state and time.

    After an autoencoder's training, `fit` first fits a Gaussian mixture to the latents, the base, and then trains the
    flow, which starts as the identity, by conditional flow matching: along straight lines from draws of the base to
    latents of the same Gaussian, paired by optimal transport (`coupling`), the field learns their velocity. No solve is
    needed for that, and the paths are short and nearly straight, so that few steps sample well. Or it is trained
    together with the autoencoder (`joint`), from N(0, I), by the bound that its density is a part of. Before `fit`,
    unless joint, it is the standard normal, at that one's cost. The log-density is exact: with one hidden layer, which
    suits `joint`, its divergence is in closed form; with more, which sample better, it takes d forward derivatives at
    each evaluation.

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Tong et al., "Improving and generalizing
    flow-based generative models with minibatch optimal transport", TMLR 2024.

    Args:
        dim: number of latent dimensions d.
        hidden: units of each hidden layer of the field.
        layers: hidden layers of the field.
        steps: steps of Runge-Kutta 4 between base and latents.
        updates: updates of flow matching in `fit`.
        components: Gaussians of the base in `fit`; 0 to choose their number by the likelihood of held-out latents.
        joint: whether the flow is trained with the autoencoder, and `fit` is not called.
        log_det_by: how the log-density is found, see `ncode_gen.control.Solver`.

    >>> prior = FlowPrior(2, hidden=8, updates=2)
    >>> prior.fit(torch.randn(300, 2))
    >>> latents = prior.sample(5, torch.Generator().manual_seed(0))
    >>> latents.shape, prior.log_prob(latents).shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        layers: int = 3,
        steps: int = 4,
        updates: int = 4000,
        components: int = 0,
        *,
        joint: bool = False,
        log_det_by: LogDet = "divergence",
    ) -> None:
        super().__init__()
        self.dim, self.layers, self.updates, self.fits = dim, layers, updates, not joint
        self.base = GaussianMixture(dim, 1 if joint else components)
        field = MLPField(dim, (hidden,) * layers, feedback=True, activation="silu")
        self.flow = ControlledODE(field, StaticController(field), solver=Solver("rk4", steps, log_det_by=log_det_by))
        self.flow.requires_grad_(joint)  # unless joint, `fit` trains it and the model's own training does not
        self.register_buffer("fitted", torch.tensor(joint))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.fitted: Tensor
        self.centre: Tensor
        self.scale: Tensor
        # A plain flag beside the buffer: a compiled training step must not branch on a tensor.
        self.standard = not joint
        self.register_load_state_dict_post_hook(refresh_after_loading)

    def refresh(self) -> None:
        """Take the flag from the buffer."""
        self.standard = not bool(self.fitted)

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the number of components of the base."""
        self.base.take_sizes(
            {key.removeprefix("base."): held for key, held in tensors.items() if key.startswith("base.")}
        )

    @property
    def active_flow(self) -> ControlledODE | None:
        """The flow, once it is more than the identity."""
        return None if self.standard else self.flow

    def log_prob(self, latents: Tensor, *, steps: int | None = None, grid: Tensor | None = None) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""
        if self.standard:
            return standard_normal_log_prob(latents)
        white = ((latents - self.centre) / self.scale).reshape(1, -1, self.dim)
        back = self.flow.inverse(white, log_det=True, steps=steps, grid=None if grid is None else grid.flip(0))
        assert back.log_det is not None
        found = self.base.log_prob(back.state) + back.log_det[-1] - self.scale.log().sum()
        return found.view(latents.shape[:-1])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, *, steps: int | None = None) -> Tensor:
        """Draw latents (n, d)."""
        start = self.base.sample(n, generator)
        if self.standard:
            return start
        # On a CPU the hidden units of more latents leave the cache.
        parts = start.split(CACHED) if start.device.type == "cpu" else (start,)
        white = torch.cat([self.flow(part.unsqueeze(0), steps=steps).state.squeeze(0) for part in parts])
        return self.centre + self.scale * white

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Train the flow on latents (n, d).

        Args:
            latents: (n, d).
            seed: seed of the noise and of the order of the latents.
            progress: called with the share of the work that is done.

        Raises:
            UserError: fewer latents than components of the base, or than two, or a latent that is not finite.
        """
        if len(latents) < 2:
            raise UserError(f"{len(latents)} latents cannot fit a flow prior; use more images")
        if not bool(torch.isfinite(latents).all()):
            raise UserError("a latent is not finite, so no prior can be fitted; train with a lower training.rate")
        latents = latents.detach().float().cpu()
        self.centre.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp_min(1e-4))
        white = (latents - self.centre.cpu()) / self.scale.cpu()
        tell = progress or (lambda share: None)
        self.base.fit(white, seed, lambda share: tell(0.5 * share))
        trained = copy.deepcopy(self.flow).requires_grad_(True)
        parameters = list(trained.parameters())
        average = [parameter.detach().clone() for parameter in parameters]
        optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
        generator = seeded(seed)
        batches = coupled_batches(self.base, white, min(BATCH, len(white)), generator)
        with torch.enable_grad():
            for update, (starts, ends) in zip(range(self.updates), batches, strict=False):
                for group in optimiser.param_groups:
                    group["lr"] = RATE * min(1.0, update / 100) * 0.5 * (1 + math.cos(math.pi * update / self.updates))
                loss = self._matching(trained, starts, ends, generator)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, LIMIT)
                optimiser.step()
                weight = 1 - min(DECAY, (1 + update) / (10 + update))
                torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], weight)
                tell(0.5 + 0.5 * (update + 1) / self.updates)
        with torch.no_grad():
            for parameter, value in zip(self.flow.parameters(), average, strict=True):
                parameter.copy_(value)
        self.fitted.fill_(True)
        self.refresh()

    def _matching(self, flow: ControlledODE, start: Tensor, end: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch: the squared distance of the field from the velocity of straight lines."""
        device = self.centre.device
        start, end = start.to(device), end.to(device)
        t = torch.rand(len(start), generator=generator).to(device)
        point = start + t.unsqueeze(1) * (end - start)
        field = flow.controller.steer(flow.field, point)
        velocity = field.velocity(t, point.unsqueeze(1)).squeeze(1)
        return (velocity - (end - start)).square().sum(1).mean()
