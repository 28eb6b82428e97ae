"""`NCODE`: a controlled flow from one constructor call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

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
from .fields import Activation, Field, GainFeedbackField, MLPField
from .system import ControlledODE

__all__ = ["NCODE", "Feedback", "Loop"]

Loop = Literal["static", "open", "closed"]
Feedback = Literal["gain", "weights", "dynamic"]


class NCODE(ControlledODE):
    """A neurally-controlled ODE with a multilayer perceptron as its field.

    Args:
        dim: dimension d of the state.
        hidden: widths of the field's hidden layers.
        loop: "static" (one control for all: a neural ODE), "open" (control from the condition) or "closed" (control
            from the condition and the current state).
        feedback: how the closed loop follows the state: "gain" (the gain of every hidden unit, divergence in closed
            form; one hidden layer), "weights" (every weight, theta = gamma(c, x, t)) or "dynamic" (every weight,
            theta' = g(t, x, theta), which has no density).
        condition: size of the condition; d if None, for a control made from x(0).
        gamma: widths of the hidden layers of gamma; () maps the condition to the control linearly.
        dynamics: whether theta of the open loop has dynamics of its own, theta' = g(t, theta).
        rank: rank of the dynamics of theta.
        augment: extra state dimensions that start at zero.
        time: whether the field sees the time.
        activation: "tanh", "softplus" or "silu".
        method: solver, see `ncode_gen.solvers.solve`.
        steps: steps on [0, 1] of a fixed-step solver.

    Raises:
        ValueError: an unknown loop, feedback or method, or sizes that do not fit.

    >>> import torch
    >>> flow = NCODE(dim=2, hidden=(32,), loop="closed")
    >>> x0 = torch.randn(5, 2)
    >>> solution = flow(x0, condition=x0)
    >>> solution.state.shape, solution.nfe
    (torch.Size([5, 2]), 32)
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (32,),
        loop: Loop = "open",
        *,
        feedback: Feedback = "gain",
        condition: int | None = None,
        gamma: Sequence[int] = (64,),
        dynamics: bool = False,
        rank: int = 16,
        augment: int = 0,
        time: bool = True,
        activation: Activation = "tanh",
        method: str = "rk4",
        steps: int = 8,
    ) -> None:
        if loop not in ("static", "open", "closed"):
            raise ValueError(f'loop must be "static", "open" or "closed", got {loop!r}')
        if feedback not in ("gain", "weights", "dynamic"):
            raise ValueError(f'feedback must be "gain", "weights" or "dynamic", got {feedback!r}')
        if dynamics and loop != "open":
            raise ValueError('dynamics belong to the open loop; for the closed one say feedback="dynamic"')
        size = dim + augment
        field: Field
        if loop == "closed" and feedback == "gain":
            if len(hidden) != 1:
                raise ValueError(f'feedback "gain" takes one hidden layer, got {tuple(hidden)}')
            field = GainFeedbackField(size, hidden[0], time=time, activation=activation)
        else:
            field = MLPField(size, hidden, time=time, activation=activation)
        c = dim if condition is None else condition
        controller = _controller(field, loop, feedback, c, gamma, dynamics, rank)
        super().__init__(field, controller, augment=augment, method=method, steps=steps)


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
        return DynamicController(to_control, FactoredDynamics(field, rank, follows_state=True))
    return OpenController(to_control, FactoredDynamics(field, rank, follows_state=False) if dynamics else None)
