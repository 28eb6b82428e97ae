"""Fields f(t, x, theta): vector fields whose weights are, in whole or in part, the control theta.

A control is one packed tensor: shape (P,) when all samples share it, (n, P) when each sample has its own. States have
shape (n, K, *event), K states under each sample's control (K = 1 for a plain solve); an event is a vector (d,) or a
feature map (C, H, W). `Field.bind` views the packed control as matrices once and returns the `VectorField` that it
makes, so that a solve pays for the views only once. Times are scalars, or one for each sample, shape (n,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .divergence import velocity_and_exact_divergence


def clock(t: Tensor) -> Tensor:
    """Return a time that multiplies rows of shape (n, ...): a scalar as it is, (n,) as (n, 1)."""
    return t.unsqueeze(-1) if t.dim() else t


class VectorField(ABC):
    """A field under one control: a velocity at each time and state.

    Args:
        field: the family that it belongs to.
        control: its packed control, shape (P,) or (n, P).
    """

    def __init__(self, field: Field, control: Tensor) -> None:
        self.field, self.control = field, control

    @abstractmethod
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return dx/dt at states `x`, shape (n, K, *event), and time `t`, scalar or (n,)."""

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt and its divergence in x, shape (n, K); exact, by forward mode where no closed form is known."""
        return velocity_and_exact_divergence(lambda state: self.velocity(t, state), x)

    def select(self, rows: Tensor) -> VectorField:
        """Return the vector field of some of the samples; `rows` is an index or a mask, shape (n,)."""
        return self.field.bind(self.control if self.control.dim() == 1 else self.control[rows])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the velocity depends on."""
        return (self.control, *self.field.parameters())


class Field(nn.Module, ABC):
    """A parametric family of vector fields; subclasses say how a packed control is read.

    Attributes:
        dim: dimension d of a vector, or number of channels C of a feature map.
        axes: number of axes of an event: 1 for vectors (d,), 3 for feature maps (C, H, W).
        control_size: number P of weights that a control holds.
        summary_size: number of features of a state that a controller is given.
    """

    dim: int
    axes: int = 1
    control_size: int
    summary_size: int

    @abstractmethod
    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`, shape (P,) or (n, P)."""

    @abstractmethod
    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a control, shape (P,), from which training starts well: random features, zero velocity."""

    def summary(self, x: Tensor) -> Tensor:
        """Return what a controller is given of states (n, *event), shape (n, summary_size).

        A vector is given as it is, of a feature map the mean and the mean square of every channel.
        """
        if self.axes == 1:
            return x
        pixels = x.flatten(2)
        return torch.cat([pixels.mean(-1), pixels.square().mean(-1)], -1)

    def forward(self, t: Tensor | float, x: Tensor, control: Tensor) -> Tensor:
        """Return f(t, x, control).

        Args:
            t: time, scalar or (n,).
            x: states, shape (n, *event) or (n, K, *event).
            control: packed weights, shape (P,) or (n, P).

        Returns:
            Velocities of the shape of `x`.

        Raises:
            ValueError: a dimension of `x` or of `control` is not the field's.
        """
        self.check(x, control)
        states = x if x.dim() == self.axes + 2 else x.unsqueeze(1)
        moved = self.bind(control).velocity(torch.as_tensor(t, dtype=x.dtype, device=x.device), states)
        return moved.view_as(x)

    def check(self, x: Tensor, control: Tensor) -> None:
        """Raise a ValueError that names the wrong size, if one is."""
        if x.dim() not in (self.axes + 1, self.axes + 2) or x.shape[-self.axes] != self.dim:
            what = "dimensions" if self.axes == 1 else "channels"
            raise ValueError(f"the field has {self.dim} {what} in {self.axes} axes, the states are {tuple(x.shape)}")
        self.checked_control(control, x.shape[0])

    def checked_control(self, control: Tensor, samples: int) -> Tensor:
        """Return a control, or raise a ValueError unless it is one for all samples, (P,), or one for each, (n, P)."""
        if control.dim() not in (1, 2) or control.shape[-1] != self.control_size:
            raise ValueError(
                f"the field takes {self.control_size} weights of control, got shape {tuple(control.shape)}"
            )
        if control.dim() == 2 and control.shape[0] != samples:
            raise ValueError(f"{samples} samples but {control.shape[0]} controls")
        return control

    @property
    def shared_size(self) -> int:
        """Number of weights that all samples share."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Show the sizes."""
        kib = self.control_size * 4 / 1024
        return (
            f"dim={self.dim}, control_size={self.control_size} ({kib:.1f} KiB a sample), shared_size={self.shared_size}"
        )


class ConstantField(Field):
    """The field dx/dt = theta: the control itself is the velocity.

    With theta(0) = -2 x(0) it is the reflection in open loop, x(1) = -x(0).

    Args:
        dim: dimension d of the state, and size of the control.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.control_size = self.summary_size = dim

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Constant(self, control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.dim)


class _Constant(VectorField):
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return (self.control if self.control.dim() == 1 else self.control.unsqueeze(-2)).expand_as(x)

    def velocity_and_divergence(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(t, x), x.new_zeros(x.shape[:-1])
