"""`NCODE`: a controlled flow from one constructor call."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..errors import UserError
from ..solvers import Gradient, LogDet, SolveOptions
from .activations import Activation
from .controllers import (
    AlgebraicController,
    ControlHead,
    Controller,
    DynamicController,
    FactoredDynamics,
    OpenController,
    StateGamma,
    StaticController,
    multilayer_perceptron,
)
from .convolutional import ConvField
from .field import Field
from .layered import MLPField
from .parameterisation import Control, LayerControl, Products
from .system import ControlledODE

Loop = Literal["static", "open", "closed"]
Feedback = Literal["gain", "weights", "dynamic"]


class NCODE(ControlledODE):
    """A neurally-controlled ODE: any field, any loop, any control parameterisation.

    Args:
        dim: dimension d of the state, or number of channels of feature maps.
        hidden: widths of the field's hidden layers; () for an affine field.
        loop: "static" (one control for all: a neural ODE), "open" (control from the condition) or "closed" (control
            from the condition and the current state).
        feedback: how the closed loop follows the state: "gain" (the gain of every unit, divergence in closed form for
            at most one hidden layer), "weights" (all that is control, theta = gamma(c, x, t)) or "dynamic" (all that
            is control, theta' = g(t, x, theta), which has no density).
        feedback_control: what of the "gain" feedback is control: "all" its weights, "low-rank" updates, "film", nothing
            ("shared"), or None for what `control` says.
        control: what of the field is control: "all" weights, those of the "last" layer, "low-rank" updates of shared
            weights, or "film".
        rank: rank of the low-rank updates.
        kernel: side of the kernels of a convolutional field on feature maps; None for vectors.
        condition: size of the condition; d if None, for a control made from x(0).
        gamma: widths of the hidden layers of gamma; () maps the condition to the control linearly.
        dynamics: whether theta of the open loop has dynamics of its own, theta' = g(t, theta).
        dynamics_rank: rank of the dynamics of theta.
        augment: extra state dimensions (channels) that start at zero.
        time: whether the field sees the time.
        activation: "tanh", "softplus" or "silu".
        products: precision of the field's matrix products, "float32" (that of the state) or "bfloat16".
        method: solver, see `ncode_gen.solvers.SolveOptions`.
        steps: steps on [0, 1] of a fixed-step solver.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.
        max_steps: steps that a sample may try in "dopri5" and "tsit5".
        gradient: how gradients are found, see `ncode_gen.solvers.SolveOptions`.
        log_det_by: how a log-determinant is found, likewise.

    Raises:
        ValueError: an unknown loop, feedback, control or method, or sizes that do not fit.

    >>> import torch
    >>> flow = NCODE(dim=2, hidden=(32,), loop="closed")
    >>> x0 = torch.randn(5, 2)
    >>> solution = flow(x0, condition=x0)
    >>> solution.state.shape, solution.nfe
    (torch.Size([5, 2]), 32)
    >>> maps = NCODE(dim=3, hidden=(8,), kernel=3, control="film", condition=10, method="dopri5")
    >>> maps(torch.randn(5, 3, 6, 6), condition=torch.randn(5, 10)).state.shape
    torch.Size([5, 3, 6, 6])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (32,),
        loop: Loop = "open",
        *,
        feedback: Feedback = "gain",
        feedback_control: LayerControl | None = None,
        control: Control = "all",
        rank: int = 4,
        kernel: int | None = None,
        condition: int | None = None,
        gamma: Sequence[int] = (64,),
        dynamics: bool = False,
        dynamics_rank: int = 16,
        augment: int = 0,
        time: bool = True,
        activation: Activation = "tanh",
        products: Products = "float32",
        method: str = "rk4",
        steps: int = 8,
        rtol: float = 1e-6,
        atol: float = 1e-6,
        max_steps: int = 1000,
        gradient: Gradient = "auto",
        log_det_by: LogDet = "divergence",
    ) -> None:
        if loop not in ("static", "open", "closed"):
            raise ValueError(f'loop must be "static", "open" or "closed", got {loop!r}')
        if feedback not in ("gain", "weights", "dynamic"):
            raise ValueError(f'feedback must be "gain", "weights" or "dynamic", got {feedback!r}')
        if dynamics and loop != "open":
            raise ValueError('dynamics belong to the open loop; for the closed one use feedback="dynamic"')
        gains = loop == "closed" and feedback == "gain"
        if feedback_control is not None and not gains:
            raise ValueError('feedback_control belongs to the closed loop with feedback="gain"')
        options = SolveOptions(method, steps, None, rtol, atol, max_steps, gradient, log_det_by)
        field: Field
        if kernel is None:
            field = MLPField(
                dim + augment, hidden, control=control, rank=rank, time=time, activation=activation, feedback=gains,
                feedback_control=feedback_control, products=products,
            )  # fmt: skip
        else:
            field = ConvField(
                dim + augment, hidden, kernel=kernel, control=control, rank=rank, time=time, activation=activation,
                feedback=gains, feedback_control=feedback_control, products=products,
            )  # fmt: skip
        c = dim if condition is None else condition
        controller = _controller(field, loop, feedback, c, gamma, dynamics, dynamics_rank)
        super().__init__(field, controller, augment=augment, options=options)


def _controller(
    field: Field,
    loop: Loop,
    feedback: Feedback,
    condition: int,
    gamma: Sequence[int],
    dynamics: bool,
    rank: int,
) -> Controller:
    if loop == "static":
        return StaticController(field)
    if loop == "closed" and feedback == "weights":
        return AlgebraicController(StateGamma(condition, field, gamma))
    widths = (condition, *gamma)
    to_control = nn.Sequential(*multilayer_perceptron(widths), ControlHead(widths[-1], field))
    if loop == "closed" and feedback == "dynamic":
        return DynamicController(to_control, FactoredDynamics(field, rank, closed_loop=True))
    if dynamics:
        return DynamicController(to_control, FactoredDynamics(field, rank, closed_loop=False), closed_loop=False)
    return OpenController(to_control)


def flow_of(
    dim: int,
    features: int,
    loop: Loop,
    *,
    hidden: int,
    layers: int,
    method: str,
    steps: int,
    tolerance: float,
    gamma: int = 0,
    feedback_control: str = "same",
    **more: Any,
) -> NCODE:
    """Return the flow of a recipe's section.

    Args:
        dim: number of latent dimensions.
        features: size of the condition.
        loop: its loop.
        hidden: units of each hidden layer of the field.
        layers: hidden layers of the field.
        method: solver.
        steps: its steps.
        tolerance: its tolerances.
        gamma: width of a hidden layer between features and control; 0 for a linear map.
        feedback_control: what of the feedback is control; "same" for what `control` says.
        **more: see `NCODE`.

    Raises:
        UserError: no solver has that name.
    """
    own: Any = None if feedback_control == "same" else feedback_control
    try:
        return NCODE(
            dim, (hidden,) * layers, loop, condition=features, gamma=(gamma,) if gamma else (), feedback_control=own,
            method=method, steps=steps, rtol=tolerance, atol=tolerance, **more,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"section [flow] of the recipe: {error}") from None
