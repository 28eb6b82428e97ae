"""The N-CODE flow prior: a controlled flow from noise to the latents, with its exact density."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...control import ControlledODE, MLPField, StaticController
from ...errors import UserError
from ...solvers import LogDet, SolveOptions
from .coupling import CoupledPairs
from .mixture import GaussianMixture
from .normal import FlowedPrior, refresh_after_loading, standard_normal_log_prob

CACHED = 1000


class FlowPrior(FlowedPrior):
    """A closed-loop flow from a base to the latents: the gains of the field's units follow state and time.

    After an autoencoder's training, `fit` fits a Gaussian mixture to the latents, the base; a training phase then
    trains the flow, which starts as the identity, by conditional flow matching: along straight lines from samples of
    the base to latents of the same Gaussian, paired by optimal transport (`coupling`), the field learns their velocity.
    No solve is needed for that, and the paths are short and nearly straight, so that few steps sample well. Or the flow
    is trained together with the autoencoder (`joint`), from N(0, I), by the bound that its density is a part of. Before
    that, unless joint, it is the standard normal, at that one's cost. The log-density is exact: with one hidden layer,
    which suits `joint`, its divergence is in closed form; with more, which sample better, it takes d forward
    derivatives at each evaluation.

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Tong et al., "Improving and generalizing
    flow-based generative models with minibatch optimal transport", TMLR 2024.

    Args:
        dim: number of latent dimensions d.
        hidden: units of each hidden layer of the field.
        layers: hidden layers of the field.
        steps: steps of Runge-Kutta 4 between base and latents.
        iterations: updates of flow matching.
        components: Gaussians of the base; 0 to choose their number by the likelihood of held-out latents.
        joint: whether the flow is trained with the autoencoder.
        log_det_by: how the log-density is found, see `ncode_gen.solvers.SolveOptions`.

    >>> prior = FlowPrior(2, hidden=8, joint=True)
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
        iterations: int = 4000,
        components: int = 0,
        *,
        joint: bool = False,
        log_det_by: LogDet = "divergence",
    ) -> None:
        super().__init__()
        self.dim, self.layers, self.fitted_after = dim, layers, not joint
        self.iterations = 0 if joint else iterations
        self.base = GaussianMixture(dim, 1 if joint else components)
        field = MLPField(dim, (hidden,) * layers, feedback=True, activation="silu")
        options = SolveOptions("rk4", steps, log_det_by=log_det_by)
        self.flow = ControlledODE(field, StaticController(field), options=options)
        self.flow.requires_grad_(joint)  # unless joint, a phase of its own trains it
        self.register_buffer("fitted", torch.tensor(joint))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.fitted: Tensor
        self.centre: Tensor
        self.scale: Tensor
        # A plain flag beside the buffer: a compiled training step must not branch on a tensor.
        self.standard = not joint
        self.register_load_state_dict_post_hook(refresh_after_loading)

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the number of components of the base."""
        self.base.take_sizes(
            {key.removeprefix("base."): held for key, held in tensors.items() if key.startswith("base.")}
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample latents (n, d)."""
        return self._sample(n, generator, self.flow.options)

    def _log_prob(self, latents: Tensor, options: SolveOptions) -> Tensor:
        if self.standard:
            return standard_normal_log_prob(latents)
        white = self.whitened(latents).reshape(1, -1, self.dim)
        grid = options.grid
        if isinstance(grid, Tensor):  # from 0 to 1; the inverse goes back
            options = options.but(grid=grid.flip(0))
        back = self.flow.inverse(white, log_det=True, options=options)
        assert back.log_det is not None
        found = self.base.log_prob(back.state) + back.log_det[-1] - self.scale.log().sum()
        return found.view(latents.shape[:-1])

    @torch.no_grad()
    def _sample(self, n: int, generator: torch.Generator | None, options: SolveOptions) -> Tensor:
        start = self.base.sample(n, generator)
        if self.standard:
            return start
        # On a CPU the hidden units of more latents leave the cache.
        parts = start.split(CACHED) if start.device.type == "cpu" else (start,)
        white = torch.cat([self.flow(part.unsqueeze(0), options=options).state.squeeze(0) for part in parts])
        return self.centre + self.scale * white

    def whitened(self, latents: Tensor) -> Tensor:
        """Return latents (..., d) in the units of the flow."""
        return (latents - self.centre) / self.scale

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Take the scale of latents (n, d), and fit the base to them.

        Args:
            latents: (n, d).
            seed: seed of the fit.
            progress: called with the share of the work that is done.

        Raises:
            UserError: fewer latents than components of the base, or than two, or a latent that is not finite.
        """
        if len(latents) < 2:
            raise UserError(f"{len(latents)} latents cannot fit a flow prior; use more images")
        if not bool(torch.isfinite(latents).all()):
            raise UserError("a latent is not finite, so no prior can be fitted; train with a lower training.lr")
        latents = latents.detach().float().cpu()
        self.centre.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp_min(1e-4))
        self.base.fit(self.whitened(latents.to(self.centre)).cpu(), seed, progress)

    def pairs(self, latents: Tensor, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
        """Return the pairs of base and latents that an update learns from, by its number."""
        white = self.whitened(latents.detach().float().to(self.centre)).cpu()
        return CoupledPairs(self.base, white, min(self.batch, len(white)), seed)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the flow-matching loss: the squared error of the velocity on straight lines, mean over the batch."""
        start, end, t = batch
        point = start + t.unsqueeze(1) * (end - start)
        velocity = self.flow.controller.bind(self.flow.field, point).velocity(t, point.unsqueeze(1)).squeeze(1)
        return (velocity - (end - start)).square().sum(1).mean()

    def finish(self) -> None:
        """Take over that the flow is trained."""
        self.fitted.fill_(True)
        self.refresh()


def joint_flow_prior(dim: int, hidden: int, layers: int, steps: int, log_det_by: LogDet) -> FlowPrior:
    """Return a flow prior that is trained together with the model."""
    return FlowPrior(dim, hidden, layers, steps, joint=True, log_det_by=log_det_by)
