"""Controllers: what decides a field's weights theta, from a condition and, in closed loop, from the state.

| controller | theta |
|---|---|
| `StaticController` | one trained theta for every sample: the neural ODE |
| `OpenController` | theta = gamma(c), constant in time |
| `AlgebraicController` | theta(t) = gamma(c, x(t), t): computed again at every evaluation |
| `DynamicController` | theta(0) = gamma(c), theta' = g(t, x, theta) or g(t, theta): a part of the ODE's state |

Source: Chalvidal et al., "Go with the Flow: Adaptive Control for Neural ODEs", ICLR 2021.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .field import Field, VectorField


class Controller(nn.Module, ABC):
    """What decides the control of a field.

    Attributes:
        conditional: whether theta depends on a condition.
        closed_loop: whether theta depends on the state after time 0.
    """

    conditional = True
    closed_loop = False

    @abstractmethod
    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the vector field that `field` becomes under this control, for a condition of shape (n, c).

        Where theta is a part of the ODE's state, it is that of time 0.
        """

    def constant(self, field: Field, condition: Tensor) -> Tensor | None:
        """Return theta, (n, P) or (1, P), where it does not change along a path, so that `field.bind` does the rest."""
        return None


class StaticController(Controller):
    """One trained control for every sample; with it a controlled ODE is an ordinary neural ODE.

    Args:
        field: the field to be controlled; it gives the initial control.
    """

    conditional = False

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.theta = nn.Parameter(field.initial_control())

    def constant(self, field: Field, condition: Tensor) -> Tensor:
        """Return theta, the same for all samples."""
        return field.checked_control(self.theta, len(condition))

    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the vector field under theta."""
        return field.bind(self.constant(field, condition))


class OpenController(Controller):
    """Theta decided by the condition alone and constant in time, theta = gamma(c); it is no part of the ODE's state.

    Args:
        gamma: maps conditions (n, c) to controls (n, P).
    """

    def __init__(self, gamma: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma = gamma

    def constant(self, field: Field, condition: Tensor) -> Tensor:
        """Return gamma(condition)."""
        return field.checked_control(self.gamma(condition), len(condition))

    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the vector field under gamma(condition)."""
        return field.bind(self.constant(field, condition))


class DynamicController(Controller):
    """Theta with dynamics of its own: theta(0) = gamma(c), theta' = g(t, x, theta), or g(t, theta) in open loop.

    In closed loop x(0) -> x(1) has no density for any condition, since theta remembers the path.

    Args:
        gamma: maps conditions (n, c) to controls (n, P).
        dynamics: maps a time (scalar or (n,)), in closed loop states, and controls (n, P) to the controls' rates
            (n, P). It is given the field's summary (n, s) of a state: a vector itself, a feature map's moments.
        closed_loop: whether the state enters.
    """

    def __init__(
        self, gamma: Callable[[Tensor], Tensor], dynamics: Callable[..., Tensor], *, closed_loop: bool = True
    ) -> None:
        super().__init__()
        self.gamma, self.dynamics, self.closed_loop = gamma, dynamics, closed_loop

    def start(self, condition: Tensor) -> Tensor:
        """Return theta(0) = gamma(condition), shape (n, P)."""
        return self.gamma(condition)

    def rate(self, t: Tensor, x: Tensor, theta: Tensor) -> Tensor:
        """Return theta', shape (n, P), at summaries (n, s) of the states."""
        return self.dynamics(t, x, theta) if self.closed_loop else self.dynamics(t, theta)

    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the vector field under theta(0)."""
        return field.bind(field.checked_control(self.start(condition), len(condition)))


class AlgebraicController(Controller):
    """Theta as a function of the current state: theta(t) = gamma(c, x(t), t).

    Args:
        gamma: maps conditions (m, c), summaries (m, s) of states and a time (scalar or (m,)) to controls (m, P).
    """

    closed_loop = True

    def __init__(self, gamma: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma = gamma

    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the field whose weights gamma computes again at every evaluation."""
        return _Algebraic(field, self.gamma, condition)


class _Algebraic(VectorField):
    """f(t, x, gamma(c, x, t)); its divergence, path through gamma included, by forward mode."""

    def __init__(self, field: Field, gamma: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor) -> None:
        super().__init__(field, condition)
        self.gamma = gamma

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        rows, particles = x.flatten(0, 1), x.shape[1]
        condition = self.control.repeat_interleave(particles, 0)
        if t.dim():
            t = t.repeat_interleave(particles, 0)
        theta = self.gamma(condition, self.field.summary(rows), t)
        return self.field.bind(theta).velocity(t, rows.unsqueeze(1)).view_as(x)

    def select(self, rows: Tensor) -> VectorField:
        return _Algebraic(self.field, self.gamma, self.control[rows])

    def tensors(self) -> tuple[Tensor, ...]:
        gamma = self.gamma.parameters() if isinstance(self.gamma, nn.Module) else ()
        return (*super().tensors(), *gamma)


def multilayer_perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of the given widths with SiLU after each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def _column(t: Tensor, rows: Tensor) -> Tensor:
    """Return a time, scalar or (n,), as a column beside rows (n, ...)."""
    return t.to(rows.dtype).reshape(-1, 1).expand(rows.shape[0], 1)


class ControlHead(nn.Linear):
    """A linear map from features to a field's control that starts at the field's initial control.

    Where the initial control is zero the map is zero too: a flow that starts as the identity does so for every
    sample, while hidden features differ between samples from the first step.

    Args:
        features: number of input features.
        field: the field to be controlled.
        std: standard deviation, relative to a default initialisation, of the per-sample part.
    """

    def __init__(self, features: int, field: Field, std: float = 0.3) -> None:
        super().__init__(features, field.control_size)
        initial = field.initial_control()
        with torch.no_grad():
            self.bias.copy_(initial)
            self.weight.normal_(0.0, std / features**0.5)
            self.weight *= (initial != 0).unsqueeze(1)

    @torch.no_grad()
    def break_symmetry(self) -> None:
        """Draw the part of a new map that is zero too, so that flows move samples apart from the first step."""
        zero = (self.bias == 0).unsqueeze(1)
        self.weight += zero * torch.randn_like(self.weight) / self.in_features**0.5


class StateGamma(nn.Module):
    """Gamma(c, x, t) of an algebraic closed loop: a multilayer perceptron of condition, state and time.

    Args:
        condition: size c of the condition.
        field: the field to be controlled.
        hidden: widths of the hidden layers; () maps them linearly.
    """

    def __init__(self, condition: int, field: Field, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (condition + field.summary_size + 1, *hidden)
        self.body = multilayer_perceptron(widths)
        self.head = ControlHead(widths[-1], field, std=1.0)

    def forward(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return controls (m, P) for conditions (m, c), summaries (m, s) and a time, scalar or (m,)."""
        control: Tensor = self.head(self.body(torch.cat([condition, x, _column(t, x)], -1)))
        return control


class FactoredDynamics(nn.Module):
    """Dynamics of theta of low rank: theta' = U tanh(V theta + A x + w t + b), U zero at the start.

    A dense map would need P x P weights; this one needs rank x (2 P + s + 2), s the size of a state's summary.

    Args:
        field: the field whose control has dynamics.
        rank: number of hidden units.
        closed_loop: whether x enters (closed loop) or not (open loop).
    """

    def __init__(self, field: Field, rank: int, *, closed_loop: bool) -> None:
        super().__init__()
        inputs = field.control_size + 1 + (field.summary_size if closed_loop else 0)
        self.down, self.up = nn.Linear(inputs, rank), nn.Linear(rank, field.control_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, t: Tensor, *state_then_theta: Tensor) -> Tensor:
        """Return theta', shape (n, P), from a time and (theta) or (summary of x, theta)."""
        clock = _column(t, state_then_theta[-1])
        rate: Tensor = self.up(torch.tanh(self.down(torch.cat([*state_then_theta, clock], -1))))
        return rate
