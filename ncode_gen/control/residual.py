"""A deep field on vectors: residual layers with LayerNorm, whose FiLM is the control."""

import torch
from torch import Tensor, nn

from .field import Field, VectorField
from .image_field import FREQUENCIES, best_linear_velocity, features_of_time, time_frequencies


class _Layer(nn.Module):
    """LayerNorm, FiLM and two linear maps around a skip; it starts as the identity."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.into, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.clock = nn.Linear(time, 2 * width)
        for value in (self.out.weight, self.out.bias, *self.clock.parameters()):
            nn.init.zeros_(value)

    def forward(self, x: Tensor, time: Tensor, film: Tensor) -> Tensor:
        scale, shift = (self.clock(time) + film).chunk(2, 1)
        units = torch.addcmul(shift, self.norm(x), 1 + scale)
        out: Tensor = x + self.out(nn.functional.silu(self.into(units)))
        return out


class ResidualField(Field):
    """Residual layers with LayerNorm on vectors, for flow matching from N(0, I) to states of unit variance.

    A control is FiLM: a scale and a shift of each unit of each layer. Source: the latent network of Preechakul et al.,
    "Diffusion autoencoders", CVPR 2022, section 5; the preconditioning is that of `ImageField`.

    Args:
        dim: dimension d of the states.
        width: units of a layer; twice as many between its two linear maps.
        layers: number of layers.

    >>> field = ResidualField(3, width=8, layers=2)
    >>> field(0.5, torch.randn(5, 3), torch.zeros(field.control_size)).shape
    torch.Size([5, 3])
    """

    def __init__(self, dim: int, width: int = 256, layers: int = 6) -> None:
        super().__init__()
        self.dim = self.summary_size = dim
        self.width, self.control_size = width, 2 * width * layers
        self.clock = nn.Sequential(nn.Linear(2 + 2 * FREQUENCIES, width), nn.SiLU())
        self.into, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.layers = nn.ModuleList([_Layer(width, width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("frequencies", time_frequencies(), persistent=False)
        self.frequencies: Tensor

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Bound(self, control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros: FiLM that changes nothing."""
        return torch.zeros(self.control_size)

    def velocity_of(self, t: Tensor, x: Tensor, control: Tensor) -> Tensor:
        """Return the velocity of states (m, d) at times, scalar or (m,), under controls (m or 1, P)."""
        slope, uncertain, deviation = (part.reshape(-1, 1) for part in best_linear_velocity(t))
        time = self.clock(features_of_time(t, self.frequencies))
        units = self.into(x / deviation)
        for layer, film in zip(self.layers, control.split(2 * self.width, 1), strict=True):
            units = layer(units, time, film)
        found: Tensor = slope * x + uncertain * self.out(nn.functional.silu(self.norm(units))).to(x.dtype)
        return found


class _Bound(VectorField):
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        field, particles = self.field, x.shape[1]
        assert isinstance(field, ResidualField)
        control = self.control.view(-1, field.control_size)
        if len(control) > 1 and particles > 1:
            control = control.repeat_interleave(particles, 0)
        if t.dim():
            t = t.repeat_interleave(particles, 0)
        return field.velocity_of(t, x.flatten(0, 1), control).view_as(x)
