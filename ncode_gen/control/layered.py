"""Fields made of affine layers, and the multilayer perceptrons on vectors among them.

All are the same network on points: a vector is one point, a feature map (see `convolutional`) a point at each pixel,
whose layers see the patch of pixels around it. Every layer has the chosen control
parameterisation, see `ncode_gen.control.parameterisation`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from .activations import Activation, activate, activate_with_slope
from .field import Field, VectorField
from .parameterisation import Affine, Control, ControlledLayer, LayerControl, Products, check_control


class LayeredField(Field):
    """A network of affine layers, part of whose weights is control.

    With `feedback` the loop is closed through the gains of its units: units h that feed a later layer become
    (1 + m(t, x)) h with m(t, x) = tanh(V' x + v + t u), so that theta(t) is a function of a condition and of the
    current state (the algebraic closed loop). With m = 0, where training starts, it is the open loop. V, v and u are
    control as the other weights are, unless `feedback_control` says otherwise.

    Args:
        dim: dimension of a vector, or number of channels.
        hidden: widths of the hidden layers; () for an affine field.
        kernel: side of the patches that a layer sees; 1 on vectors.
        control: control parameterisation, see `ncode_gen.control.parameterisation`.
        rank: rank of the low-rank updates.
        time: whether hidden layers and gains see the time.
        activation: "tanh", "softplus" or "silu".
        feedback: whether the gain of every unit follows the state.
        feedback_control: what of the feedback is control: "all", "low-rank" updates, "film", nothing
            ("shared"), or None for what `control` says.
        products: precision of the matrix products, "float32" (that of the state) or "bfloat16".

    Raises:
        ValueError: sizes below one, an even kernel, or an unknown control parameterisation.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        *,
        kernel: int,
        control: Control,
        rank: int,
        time: bool,
        activation: Activation,
        feedback: bool,
        feedback_control: LayerControl | None,
        products: Products,
    ) -> None:
        super().__init__()
        if dim < 1 or min((1, *hidden)) < 1:
            raise ValueError(f"a field needs dim >= 1 and widths >= 1, got dim={dim}, hidden={tuple(hidden)}")
        check_control(control, rank)
        if feedback_control not in (None, *get_args(LayerControl)):
            known = ", ".join(get_args(LayerControl))
            raise ValueError(f"feedback_control must be None or one of {known}, got {feedback_control!r}")
        self.dim, self.hidden, self.kernel, self.activation = dim, tuple(hidden), kernel, activation
        self.control = control
        area = kernel if self.axes == 1 else kernel * kernel
        widths = (dim, *hidden, dim)
        below: LayerControl = "shared" if control == "last" else control
        last: LayerControl = "all" if control == "last" else control
        layers = [
            ControlledLayer(area * i, o, control=below, rank=rank, time=time, products=products)
            for i, o in pairwise(widths[:-1])
        ]
        layers.append(ControlledLayer(area * widths[-2], dim, control=last, rank=rank, zero=True, products=products))
        self.layers = nn.ModuleList(layers)
        units, own = (self.hidden or (dim,)) if feedback else (), feedback_control or below
        self.gains = nn.ModuleList(
            ControlledLayer(dim, o, control=own, rank=rank, time=time, zero=True, products=products) for o in units
        )
        self.control_size = sum(layer.size for layer in self._all())

    def _all(self) -> list[ControlledLayer]:
        return [layer for layer in (*self.layers, *self.gains) if isinstance(layer, ControlledLayer)]

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`; the divergence is in closed form for at most one hidden layer."""
        whole = self._all()
        pieces = iter(control.split([part for layer in whole for part in layer.parts], dim=-1))
        bound = [layer.bind(list(islice(pieces, len(layer.parts)))) for layer in whole]
        return self.bound(control, bound[: len(self.layers)], bound[len(self.layers) :])

    def bound(self, control: Tensor, layers: list[Affine], gains: list[Affine]) -> LayeredBound:
        """Return the vector field of bound layers and gains."""
        return (ShallowField if len(self.layers) <= 2 else LayeredBound)(self, control, layers, gains)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw the hidden layers at random; the last layer and the feedback are zero: the flow is the identity."""
        return torch.cat([layer.initial(generator) for layer in self._all()])

    @property
    def multiplications(self) -> int:
        """Multiplications of an evaluation at one point (a vector, a pixel)."""
        return sum(
            layer.inputs * layer.outputs + (layer.control == "low-rank") * layer.rank * (layer.inputs + layer.outputs)
            for layer in self._all()
        )

    @abstractmethod
    def points(self, x: Tensor) -> Tensor:
        """Return states (n, K, *event) as points (n, M, d)."""

    @abstractmethod
    def states(self, points: Tensor, x: Tensor) -> Tensor:
        """Return points (n, M, d) as states of the shape of `x`; or (n, M) as (n, K) by a sum over an event."""

    @abstractmethod
    def patches(self, points: Tensor, x: Tensor) -> Tensor:
        """Return what a layer sees at each of the points (n, M, w) of states `x`: (n, M, w * area)."""

    @abstractmethod
    def effects(self, inner: Tensor | None, outer: Tensor, x: Tensor) -> Tensor:
        """Return the effect of each unit on itself, shape (..., M, units), one for all points where M is 1.

        Args:
            inner: matrix from what the unit sees of x to the unit, (..., i, units), or (..., d, units) where it sees
                one point; None where the units are x itself.
            outer: matrix from units to dx/dt, (..., units * area, d).
            x: the states.
        """

    def extra_repr(self) -> str:
        """Show sizes and cost."""
        return f"{super().extra_repr()}, control={self.control}, multiplications={self.multiplications} a point"


class LayeredBound(VectorField):
    """A layered field under one control."""

    field: LayeredField

    def __init__(self, field: LayeredField, control: Tensor, layers: list[Affine], gains: list[Affine]) -> None:
        super().__init__(field, control)
        self.layers, self.gains = layers, gains

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return dx/dt."""
        field = self.field
        units = points = field.points(x)
        if len(self.layers) == 1 and self.gains:
            units = (1 + torch.tanh(self.gains[0](t, points))) * units
        for i, layer in enumerate(self.layers[:-1]):
            units = activate(field.activation, layer(t, field.patches(units, x)))
            if self.gains:
                units = (1 + torch.tanh(self.gains[i](t, points))) * units
        return field.states(self.layers[-1](t, field.patches(units, x)), x)


class ShallowField(LayeredBound):
    """At most one hidden layer: each unit acts on itself through its inputs and its gain, and so the trace is known."""

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt and its divergence, shape (n, K), in closed form."""
        field = self.field
        points = field.points(x)
        outer = self.layers[-1].dense()
        if len(self.layers) == 1:
            value, inner = points, None
            slope = torch.ones_like(points)
        else:
            value, slope = activate_with_slope(field.activation, self.layers[0](t, field.patches(points, x)))
            inner = self.layers[0].dense()
        trace = slope * field.effects(inner, outer, x)
        if self.gains:
            modulation = torch.tanh(self.gains[0](t, points))
            through = field.effects(self.gains[0].dense(), outer, x)
            trace = (1 + modulation) * trace + (1 - modulation * modulation) * value * through
            value = (1 + modulation) * value
        velocity = field.states(self.layers[-1](t, field.patches(value, x)), x)
        return velocity, field.states(trace.sum(-1), x)


class MLPField(LayeredField):
    """A multilayer perceptron on vectors.

    With one hidden layer, dx/dt = W2' a(W1' x + b1 + t c1) + b2, the divergence is known in closed form:
    sum over the hidden units h of a'_h (W1 W2)_hh, where the last factor does not depend on x.

    Args:
        dim: dimension d of the state.
        hidden: widths of the hidden layers; () for the affine field dx/dt = A' x + b.
        control: what of the weights is control, see `ncode_gen.control.parameterisation`.
        rank: rank of the low-rank updates.
        time: whether hidden layers and gains see the time.
        activation: "tanh", "softplus" or "silu".
        feedback: whether the gain of every hidden unit (of every input, if there is none) follows the state.
        feedback_control: what of the feedback is control, see `LayeredField`.
        products: precision of the matrix products; state and time keep theirs.

    Raises:
        ValueError: a width or the dimension is below one, or an unknown control parameterisation.

    >>> field = MLPField(dim=2, hidden=(8,), time=False)
    >>> field.control_size  # 2 x 8 + 8 + 8 x 2 + 2
    42
    >>> MLPField(dim=2, hidden=(8,), control="film", time=False).control_size  # 2 x 8 + 2 x 2
    20
    >>> field(0.0, torch.ones(5, 2), field.initial_control()).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (),
        *,
        control: Control = "all",
        rank: int = 4,
        time: bool = True,
        activation: Activation = "tanh",
        feedback: bool = False,
        feedback_control: LayerControl | None = None,
        products: Products = "float32",
    ) -> None:
        super().__init__(
            dim, hidden, kernel=1, control=control, rank=rank, time=time, activation=activation, feedback=feedback,
            feedback_control=feedback_control, products=products,
        )  # fmt: skip
        self.summary_size = dim

    def points(self, x: Tensor) -> Tensor:
        """Return vectors (n, K, d) as they are."""
        return x

    def states(self, points: Tensor, x: Tensor) -> Tensor:
        """Return points as they are."""
        return points

    def patches(self, points: Tensor, x: Tensor) -> Tensor:
        """Return points as they are."""
        return points

    def effects(self, inner: Tensor | None, outer: Tensor, x: Tensor) -> Tensor:
        """Return the diagonal of inner' outer', shape (..., 1, units)."""
        if inner is None:
            return outer.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return (inner * outer.transpose(-1, -2)).sum(-2, keepdim=True)


class LinearField(MLPField):
    """The affine field dx/dt = A' x + b, with A and b as control; its divergence is the trace of A.

    Args:
        dim: dimension d of the state.
        control: what of A and b is control.
        rank: rank of the low-rank update of A.
    """

    def __init__(self, dim: int, *, control: Control = "all", rank: int = 4) -> None:
        super().__init__(dim, (), control=control, rank=rank)
