"""Fields f(t, x, theta): vector fields without weights of their own; every weight is the control theta.

A control is one packed tensor: shape (P,) when all samples share it, (n, P) when each sample has its own. Points
have shape (n, K, d), K points under each sample's control (K = 1 for a plain solve). `Field.bind` views the packed
control as matrices once and returns the `VectorField` that it makes, so that a solve pays for the views only once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .divergence import velocity_and_exact_divergence

__all__ = [
    "Activation",
    "ConstantField",
    "Field",
    "GainFeedbackField",
    "LinearField",
    "MLPField",
    "VectorField",
]

Activation = Literal["tanh", "softplus", "silu"]


class VectorField(ABC):
    """A field under one control: a velocity at each time and point."""

    @abstractmethod
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return dx/dt, shape (n, K, d), at points `x` of that shape and time `t` (scalar)."""

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt, shape (n, K, d), and its divergence in x, shape (n, K); exact, by forward mode."""
        return velocity_and_exact_divergence(lambda point: self.velocity(t, point), x)


class Field(nn.Module, ABC):
    """A parametric family of vector fields; subclasses say how a packed control is read.

    Attributes:
        dim: dimension d of the state.
        control_size: number P of weights that a control holds.
    """

    dim: int
    control_size: int

    @abstractmethod
    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`, shape (P,) or (n, P)."""

    @abstractmethod
    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a control, shape (P,), from which training starts well: random features, zero velocity."""

    def forward(self, t: Tensor | float, x: Tensor, control: Tensor) -> Tensor:
        """Return f(t, x, control).

        Args:
            t: time, scalar.
            x: points, shape (n, d) or (n, K, d).
            control: packed weights, shape (P,) or (n, P).

        Returns:
            Velocities of the shape of `x`.

        Raises:
            ValueError: the last dimension of `x` or of `control` is not the field's.
        """
        self.check(x, control)
        points = x if x.dim() == 3 else x.unsqueeze(-2)
        moved = self.bind(control).velocity(torch.as_tensor(t, dtype=x.dtype, device=x.device), points)
        return moved.view_as(x)

    def check(self, x: Tensor, control: Tensor) -> None:
        """Raise a ValueError that names the wrong size, if one is."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"the field has {self.dim} dimensions, the state has {x.shape[-1]}")
        if control.shape[-1] != self.control_size:
            raise ValueError(f"the field takes {self.control_size} weights of control, got {control.shape[-1]}")
        if control.dim() == 2 and control.shape[0] != x.shape[0]:
            raise ValueError(f"{x.shape[0]} samples but {control.shape[0]} controls")

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"dim={self.dim}, control_size={self.control_size}"


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply x @ weight + bias with shared (2-D) or per-sample (3-D) weights; bias has no or one leading axis."""
    if weight.dim() == 2:
        return x @ weight + bias
    return torch.baddbmm(bias.unsqueeze(-2), x, weight)


def activate(name: Activation, x: Tensor) -> Tensor:
    """Return the activation a(x), elementwise."""
    if name == "tanh":
        return torch.tanh(x)
    if name == "softplus":
        return nn.functional.softplus(x)
    return nn.functional.silu(x)


def activate_with_slope(name: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a(x) and a'(x), elementwise."""
    if name == "tanh":
        value = torch.tanh(x)
        return value, 1 - value * value
    gate = torch.sigmoid(x)
    if name == "softplus":
        return nn.functional.softplus(x), gate
    return x * gate, gate * (1 + x * (1 - gate))


@dataclass(frozen=True)
class Layer:
    """One affine layer read from a packed control: (..., in, out), (..., out), and the time's weights if any."""

    weight: Tensor
    bias: Tensor
    time: Tensor | None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Return x @ weight + bias + t * time."""
        bias = self.bias if self.time is None else self.bias + t * self.time
        return affine(x, self.weight, bias)


@dataclass(frozen=True)
class LayerShape:
    """How a packed control stores a layer."""

    inputs: int
    outputs: int
    time: bool

    @property
    def size(self) -> int:
        """Number of weights."""
        return (self.inputs + 1 + self.time) * self.outputs

    def view(self, packed: Tensor) -> Layer:
        """View (..., size) packed weights as a layer, without a copy."""
        matrix = packed.unflatten(-1, (self.inputs + 1 + self.time, self.outputs))
        bias = matrix[..., self.inputs, :]
        return Layer(matrix[..., : self.inputs, :], bias, matrix[..., self.inputs + 1, :] if self.time else None)

    def initial(self, generator: torch.Generator | None, *, zero: bool = False) -> Tensor:
        """Draw packed weights: normal of variance 1 / inputs, small time weights, zero bias; or all zero."""
        if zero:
            return torch.zeros(self.size)
        weight = torch.randn(self.inputs, self.outputs, generator=generator) / math.sqrt(self.inputs)
        rest = torch.zeros(1 + self.time, self.outputs)
        return torch.cat([weight, rest]).flatten()


class MLPField(Field):
    """A multilayer perceptron whose weights and biases are all control.

    With one hidden layer, dx/dt = W2' a(W1' x + b1 + t c1) + b2, the divergence is known in closed form:
    sum over the hidden units h of a'_h (W1 W2)_hh, where the last factor does not depend on x.

    Args:
        dim: dimension d of the state.
        hidden: widths of the hidden layers, at least one.
        time: whether the hidden layers see the time.
        activation: "tanh", "softplus" or "silu".

    Raises:
        ValueError: a width or the dimension is below one, or there is no hidden layer.

    >>> field = MLPField(dim=2, hidden=(8,), time=False)
    >>> field.control_size  # 2 x 8 + 8 + 8 x 2 + 2
    42
    >>> field(0.0, torch.ones(5, 2), field.initial_control()).shape
    torch.Size([5, 2])
    """

    def __init__(self, dim: int, hidden: Sequence[int], *, time: bool = True, activation: Activation = "tanh") -> None:
        super().__init__()
        if dim < 1 or not hidden or min(hidden) < 1:
            raise ValueError(f"an MLP field needs dim >= 1 and widths >= 1, got dim={dim}, hidden={tuple(hidden)}")
        self.dim, self.activation = dim, activation
        widths = (dim, *hidden, dim)
        last = len(widths) - 2
        self.shapes = tuple(LayerShape(widths[i], widths[i + 1], time and i < last) for i in range(last + 1))
        self.control_size = sum(shape.size for shape in self.shapes)

    def layers(self, control: Tensor) -> list[Layer]:
        """View a packed control, shape (..., P), as the layers it stores."""
        pieces = control.split([shape.size for shape in self.shapes], dim=-1)
        return [shape.view(piece) for shape, piece in zip(self.shapes, pieces, strict=True)]

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`; the divergence is in closed form for one hidden layer."""
        layers = self.layers(control)
        if len(layers) == 2:
            return _ShallowMLP(layers[0], layers[1], self.activation)
        return _DeepMLP(layers, self.activation)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw hidden layers at random and set the last layer to zero: the flow starts as the identity."""
        drawn = [shape.initial(generator) for shape in self.shapes[:-1]]
        return torch.cat([*drawn, self.shapes[-1].initial(generator, zero=True)])


class _DeepMLP(VectorField):
    def __init__(self, layers: list[Layer], activation: Activation) -> None:
        self.layers, self.activation = layers, activation

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = activate(self.activation, layer(t, x))
        return self.layers[-1](t, x)


def _loop_weights(inner: Tensor, outer: Tensor) -> Tensor:
    """Return the diagonal of inner' outer', shape (..., 1, hidden): each hidden unit's effect on itself."""
    return (inner * outer.transpose(-1, -2)).sum(-2, keepdim=True)


class _ShallowMLP(VectorField):
    def __init__(self, hidden: Layer, output: Layer, activation: Activation) -> None:
        self.hidden, self.output, self.activation = hidden, output, activation
        self.loop = _loop_weights(hidden.weight, output.weight)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.output(t, activate(self.activation, self.hidden(t, x)))

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = activate_with_slope(self.activation, self.hidden(t, x))
        return self.output(t, value), (slope * self.loop).sum(-1)


class GainFeedbackField(Field):
    """An MLP field in closed loop: the gain of every hidden unit follows the current state.

    dx/dt = W2' [(1 + m(t, x)) * a(W1' x + b1 + t c1)] + b2 with m(t, x) = tanh(V' x + v + t u): the weights
    theta(t) = (W1, b1, c1, diag(1 + m(t, x)) W2, b2) are a function of a condition and of the state (the algebraic
    closed loop), and the divergence, path through m included, is in closed form. With m = 0 it is the open loop.

    Args:
        dim: dimension d of the state.
        hidden: number of hidden units.
        time: whether the hidden units and their gains see the time.
        activation: "tanh", "softplus" or "silu".
    """

    def __init__(self, dim: int, hidden: int, *, time: bool = True, activation: Activation = "tanh") -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"a gain-feedback field needs dim >= 1 and hidden >= 1, got {dim} and {hidden}")
        self.dim, self.activation = dim, activation
        self.shapes = (
            LayerShape(dim, hidden, time),
            LayerShape(hidden, dim, False),
            LayerShape(dim, hidden, time),
        )
        self.control_size = sum(shape.size for shape in self.shapes)

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`, with its divergence in closed form."""
        pieces = control.split([shape.size for shape in self.shapes], dim=-1)
        layers = [shape.view(piece) for shape, piece in zip(self.shapes, pieces, strict=True)]
        return _GainFeedback(layers[0], layers[1], layers[2], self.activation)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw the hidden layer at random; last layer and gains are zero, so training closes the loop."""
        hidden, output, gain = self.shapes
        return torch.cat([hidden.initial(generator), output.initial(None, zero=True), gain.initial(None, zero=True)])


class _GainFeedback(VectorField):
    def __init__(self, hidden: Layer, output: Layer, gain: Layer, activation: Activation) -> None:
        self.hidden, self.output, self.gain, self.activation = hidden, output, gain, activation
        self.loop = _loop_weights(hidden.weight, output.weight)
        self.gain_loop = _loop_weights(gain.weight, output.weight)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        gain = 1 + torch.tanh(self.gain(t, x))
        return self.output(t, gain * activate(self.activation, self.hidden(t, x)))

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = activate_with_slope(self.activation, self.hidden(t, x))
        modulation = torch.tanh(self.gain(t, x))
        through_state = (1 + modulation) * slope * self.loop
        through_control = (1 - modulation * modulation) * value * self.gain_loop
        return self.output(t, (1 + modulation) * value), (through_state + through_control).sum(-1)


class LinearField(Field):
    """The linear field dx/dt = A' x + b, with A and b as control; its divergence is the trace of A.

    Args:
        dim: dimension d of the state.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.shape = LayerShape(dim, dim, False)
        self.control_size = self.shape.size

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Linear(self.shape.view(control))

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros: the flow starts as the identity, and its gradient does not vanish there."""
        return torch.zeros(self.control_size)


class _Linear(VectorField):
    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(t, x)

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        trace = self.layer.weight.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self.layer(t, x), trace.unsqueeze(-1).expand(x.shape[:-1])


class ConstantField(Field):
    """The field dx/dt = theta: the control itself is the velocity.

    With theta(0) = -2 x(0) it is the reflection in open loop, x(1) = -x(0).

    Args:
        dim: dimension d of the state, and size of the control.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.control_size = dim

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Constant(control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.dim)


class _Constant(VectorField):
    def __init__(self, control: Tensor) -> None:
        self.control = control if control.dim() == 1 else control.unsqueeze(-2)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.control.expand_as(x)

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(t, x), x.new_zeros(x.shape[:-1])
