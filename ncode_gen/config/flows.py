"""The sections of the posterior and of the flow in it."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from .registry import register
from .section import Count, Depth, Section, Width, needs

FIXED = ("euler", "midpoint", "heun", "rk4")
ADAPTIVE = ("dopri5", "tsit5")
# Methods of torchdiffeq whose steps adapt; its others take a number of steps.
LIBRARY_ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")


def has_fixed_steps(method: str) -> bool:
    """Return whether a method is one of ours with fixed steps, as `solvers.has_fixed_steps` does, without torch."""
    return method in FIXED or method.startswith("rk2:")


def _adapts(method: str) -> bool:
    return method in ADAPTIVE or method.removeprefix("torchdiffeq:") in LIBRARY_ADAPTIVE


@dataclass(frozen=True)
class PosteriorSection(Section):
    """The distribution of the latent given the encoder's features; `build` takes their number, d and the flow.

    Attributes:
        random: whether it has a density; None where the objective decides.
        takes_flow: whether a flow moves its samples.
    """

    section: ClassVar[str] = "posterior"
    random: ClassVar[bool | None] = True
    takes_flow: ClassVar[bool] = True


@register("auto")
class AutoPosteriorSection(PosteriorSection):
    """What the objective needs: gaussian with "elbo", else point."""

    random: ClassVar[bool | None] = None


@register("gaussian")
class GaussianPosteriorSection(PosteriorSection):
    """A Gaussian, moved by the flow."""

    target: ClassVar[str] = "distributions.posterior:GaussianPosterior"


@register("point")
class PointPosteriorSection(PosteriorSection):
    """A deterministic code, moved by the flow."""

    target: ClassVar[str] = "distributions.posterior:PointPosterior"
    random: ClassVar[bool | None] = False


@register("iaf")
class AutoregressivePosteriorSection(PosteriorSection):
    """An inverse autoregressive flow of the library zuko, to compare with (pip install "ncode_gen[zuko]")."""

    target: ClassVar[str] = "distributions.autoregressive:AutoregressivePosterior"
    takes_flow: ClassVar[bool] = False

    hidden: Width = needs("posterior.layers above 0", lambda own: own.layers > 0, default=32)
    """Units of each hidden layer of a transform's network."""
    layers: Depth = 1
    """Hidden layers of a transform's network."""
    transforms: Width = 4
    """Number of transforms."""


@dataclass(frozen=True)
class FlowSection(Section):
    """The flow that moves the posterior's samples; `build` takes d and the number of features.

    Attributes:
        loop: the kind.
        is_flow: whether there is a flow.
    """

    section: ClassVar[str] = "flow"
    tag: ClassVar[str] = "loop"
    loop: ClassVar[str]
    is_flow: ClassVar[bool] = True
    target: ClassVar[str] = "control.ncode:flow_of"

    def no_density(self) -> str | None:
        """Return the key that leaves the flow without a density, if one does."""
        return None


@register("none")
class NoFlowSection(FlowSection):
    """No flow: the plain VAE or autoencoder."""

    is_flow: ClassVar[bool] = False

    def build(self, *context: object) -> None:
        """Return None."""


@dataclass(frozen=True)
class SolvedSection(FlowSection):
    """A flow and its solver."""

    hidden: Width = needs("flow.layers above 0", lambda own: own.layers > 0, default=32)
    """Units of each hidden layer of the field."""
    layers: Depth = 1
    """Hidden layers of the field; 0 for an affine field."""
    control: Literal["all", "last", "low-rank", "film"] = "all"
    """What of the field is control: all weights, the last layer, low-rank updates, or FiLM (scale and shift)."""
    rank: Width = needs('flow.control or flow.feedback_control = "low-rank"', lambda own: own.low_rank(), default=4)
    """Rank of the low-rank updates."""
    augment: Count = 0
    """Extra dimensions of the state that start at zero (ANODE); they leave no density, and suit autoencoders alone."""
    time: bool = needs("flow.layers above 0", lambda own: own.layers > 0 or own.has_gains(), default=True)
    """Whether the field sees the time."""
    activation: Literal["tanh", "softplus", "silu"] = needs(
        "flow.layers above 0", lambda own: own.layers > 0, default="tanh"
    )
    """Activation of the field."""
    method: str = "rk4"
    """Solver: euler, midpoint, heun, rk4, rk2:ALPHA; dopri5 or tsit5, adaptive for each sample; torchdiffeq:NAME."""
    steps: Width = needs("a flow.method of fixed steps", lambda own: not _adapts(own.method), default=4)
    """Steps on [0, 1] of a fixed-step solver."""
    tolerance: Annotated[float, Meta(gt=0, lt=1)] = needs(
        "an adaptive flow.method", lambda own: _adapts(own.method), default=1e-4
    )
    """Relative and absolute tolerance of a step of an adaptive solver."""
    log_det_by: Literal["divergence", "steps"] = "divergence"
    """Integrate the divergence, or take each step's own Jacobian: slower, and exact with any number of steps."""
    grid: Literal["even", "random"] = "even"
    """Time grid in training; a random one keeps the flow from fitting the error of an even one."""

    def arguments(self) -> dict[str, Any]:
        """Return the keys of the flow with its loop; the grid is that of training."""
        return {key: value for key, value in self.values().items() if key != "grid"} | {"loop": self.loop}

    def has_gains(self) -> bool:
        """Return whether the gains of the field's units follow the state."""
        return False

    def low_rank(self) -> bool:
        """Return whether anything has low-rank updates."""
        return self.control == "low-rank"

    def no_density(self) -> str | None:
        """Return the key that leaves the flow without a density, if one does."""
        return "flow.augment" if self.augment else None

    def check_pairs(self) -> None:
        """Refuse a solver that the other keys do not work with."""
        if self.grid == "random" and not has_fixed_steps(self.method):
            raise ValueError('flow.grid = "random" needs flow.method euler, midpoint, heun, rk2:ALPHA or rk4')
        if self.log_det_by == "steps" and not has_fixed_steps(self.method):
            raise ValueError('flow.log_det_by = "steps" needs flow.method euler, midpoint, heun, rk2:ALPHA or rk4')


@register("static")
class StaticSection(SolvedSection):
    """One control for all samples: a neural ODE."""


@dataclass(frozen=True)
class ControlledSection(SolvedSection):
    """A flow whose control comes from the encoder's features."""

    gamma: Count = 32
    """Width of a hidden layer between the features and the control; 0 for a linear map."""


@register("open")
class OpenSection(ControlledSection):
    """Control from the encoder's features: the open loop."""

    dynamics: bool = False
    """Whether the control has dynamics of its own, theta' = g(t, theta)."""

    def check_pairs(self) -> None:
        """Refuse what dynamics of the control cannot have."""
        super().check_pairs()
        if self.log_det_by == "steps" and self.dynamics:
            raise ValueError('flow.log_det_by = "steps" needs a control without flow.dynamics')


@register("closed")
class ClosedSection(ControlledSection):
    """Control from the encoder's features and the current state: the closed loop."""

    feedback: Literal["gain", "weights", "dynamic"] = "gain"
    """How the control follows the state: the gain of every unit, all that is control, or by dynamics of its own
    ("dynamic", which has no density and suits autoencoders alone)."""
    feedback_control: Literal["same", "all", "low-rank", "film", "shared"] = needs(
        'flow.feedback = "gain"', lambda own: own.feedback == "gain", default="same"
    )
    """What of the feedback "gain" is each sample's own: what `control` says, all its weights, low-rank updates, FiLM,
    or nothing."""

    def has_gains(self) -> bool:
        """Return whether the gains of the field's units follow the state."""
        return self.feedback == "gain"

    def low_rank(self) -> bool:
        """Return whether anything has low-rank updates."""
        return self.control == "low-rank" or (self.has_gains() and self.feedback_control == "low-rank")

    def no_density(self) -> str | None:
        """Return the key that leaves the flow without a density, if one does."""
        return 'flow.feedback = "dynamic"' if self.feedback == "dynamic" else super().no_density()

    def check_pairs(self) -> None:
        """Refuse what dynamics of the control cannot have."""
        super().check_pairs()
        if self.log_det_by == "steps" and self.feedback == "dynamic":
            raise ValueError('flow.log_det_by = "steps" needs a control without dynamics; use feedback "gain"')
