"""Fields on images whose weights a code controls over space, and how their controls are laid out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from .field import Field, VectorField

ImageControl = Literal["input", "time", "film", "film-map", "low-rank", "mixture"]
FASTEST, FREQUENCIES = 1000.0, 16


@dataclass(frozen=True)
class Site:
    """A block of a network, which a control acts on.

    Attributes:
        channels: channels that FiLM scales and shifts, and that the block's own 1 x 1 kernel maps to each other.
        size: (H, W) of its maps.
    """

    channels: int
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class SiteControl:
    """What a control holds for one site, in the layout of maps (m, ., H, W) or (m, ., 1, 1).

    Attributes:
        scale: added to the scale 1 of the channels; 0 without FiLM.
        shift: of the channels.
        down: rows of an update of rank r of the 1 x 1 kernel, (m, C, r), or None.
        up: its columns, (m, r, C), or None.
        mix: weights of the shared kernels of a mixture, (m, K), or None.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    mix: Tensor | None = None


@dataclass(frozen=True, eq=False)
class UnpackedControl:
    """What a control holds for each part of a network.

    Attributes:
        first: biases of the first layer over space, (m, `input_channels`, H', W'), or None.
        time: what is added to the features of the time, (m, T), or None.
        sites: for each site.
    """

    first: Tensor | None
    time: Tensor | None
    sites: tuple[SiteControl, ...]

    def repeated(self, times: int) -> UnpackedControl:
        """Return the control with each sample's part several times in a row."""

        def more(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.repeat_interleave(times, 0)

        sites = tuple(SiteControl(*map(more, vars(site).values())) for site in self.sites)
        return UnpackedControl(more(self.first), more(self.time), sites)


class ImageField(Field):
    """A network on images of one size, parts of whose weights are each sample's own: what a code decides.

    | control | each sample's own | numbers |
    |---|---|---|
    | `input` | biases of the first layer, over space: what painting the code beside the image can do | width s s |
    | `time` | what is added to the features of the time, which are FiLM of all blocks (as Latent-CFM) | T |
    | `film` | FiLM: a scale and a shift of each channel of each block | 2 C a block |
    | `film-map` | FiLM over space: coarse maps of scales and shifts (as SPADE) | 2 C s s a block |
    | `low-rank` | an update of rank r of a 1 x 1 kernel of each block | 2 r C a block |
    | `mixture` | each block's 1 x 1 kernel, a mixture of K shared ones | K a block |

    Coarse maps of side s are enlarged to the block's own size by bilinear interpolation. A packed control is all
    coarse maps, (s, s, `map_channels`), and after them all other numbers, (`vector_size`,).

    The field is meant for flow matching along straight lines from N(0, I) at t = 0 to states of about unit variance at
    t = 1. The network adds to the velocity that is best where both ends are noise, in units of what that one leaves
    uncertain: inputs and what it has to learn have unit variance at all times (the preconditioning of Karras et al.,
    "Elucidating the design space of diffusion-based generative models", NeurIPS 2022, section 5, for straight lines).

    Sources: Perez et al., "FiLM", AAAI 2018; Park et al., "Semantic image synthesis with spatially-adaptive
    normalization", CVPR 2019; Yang et al., "CondConv", NeurIPS 2019.

    Args:
        shape: (C, H, W) of the states.
        control: names of the table above, at least one.
        side: side s of the coarse maps.
        rank: rank r of an update ("low-rank").
        kernels: number K of kernels ("mixture").

    Raises:
        ValueError: an unknown control or none, or a size below one.
    """

    axes = 3
    sites: Sequence[Site]
    input_channels: int
    time_units: int

    def __init__(
        self,
        shape: tuple[int, int, int],
        control: Sequence[ImageControl],
        side: int = 8,
        rank: int = 8,
        kernels: int = 4,
    ) -> None:
        super().__init__()
        unknown = set(control) - set(get_args(ImageControl))
        if unknown or not control:
            raise ValueError(f"control must be of {', '.join(get_args(ImageControl))}, got {list(control)}")
        if min(*shape, side, rank, kernels) < 1:
            raise ValueError(f"sizes must be at least 1, got {shape}, side {side}, rank {rank} and {kernels} kernels")
        self.shape, self.dim, self.side, self.rank, self.kernels = shape, shape[0], side, rank, kernels
        self.controls = tuple(dict.fromkeys(control))
        self.summary_size = shape[0] * side * side
        self.register_buffer("frequencies", time_frequencies(), persistent=False)
        self.frequencies: Tensor

    def lay_out(self, sites: Sequence[Site], input_channels: int, time_units: int) -> None:
        """Fix where the numbers of a control go; to be called once the network is made."""
        self.sites, self.input_channels, self.time_units = sites, input_channels, time_units
        own, channels = self.controls, [site.channels for site in sites]
        self.map_sizes = [input_channels] * ("input" in own)
        self.map_sizes += [2 * c for c in channels] if "film-map" in own else []
        self.vector_sizes = [time_units] * ("time" in own)
        self.vector_sizes += [2 * c for c in channels] if "film" in own else []
        self.vector_sizes += [self.rank * c for c in channels for _ in range(2)] if "low-rank" in own else []
        self.vector_sizes += [self.kernels for _ in channels] if "mixture" in own else []
        self.map_channels, self.vector_size = sum(self.map_sizes), sum(self.vector_sizes)
        self.control_size = self.map_channels * self.side**2 + self.vector_size

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Controlled(self, control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a control that changes nothing: zeros, but for random rows of the updates of kernels."""
        control = torch.zeros(self.control_size)
        if "low-rank" in self.controls:
            start = self.map_channels * self.side**2 + self.time_units * ("time" in self.controls)
            start += sum(2 * site.channels for site in self.sites) * ("film" in self.controls)
            for site in self.sites:
                size = self.rank * site.channels
                control[start : start + size] = torch.randn(size, generator=generator) / site.channels**0.5
                start += 2 * size
        return control

    def summary(self, x: Tensor) -> Tensor:
        """Return states (n, C, H, W) as coarse maps, (n, C s s)."""
        return nn.functional.adaptive_avg_pool2d(x, self.side).flatten(1)

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slope of the best linear velocity at times t (...), its standard error, and that of the state."""
        return best_linear_velocity(t)

    def time_features(self, t: Tensor) -> Tensor:
        """Return features (m, F) of times, scalar or (m,): of log(t / (1 - t)), which noise levels are even in."""
        return features_of_time(t, self.frequencies)

    @property
    def time_size(self) -> int:
        """Number of features of a time."""
        return 2 + 2 * FREQUENCIES

    @abstractmethod
    def velocity_of(self, t: Tensor, x: Tensor, control: UnpackedControl) -> Tensor:
        """Return the velocity of states (m, C, H, W).

        Args:
            t: time, scalar or (m,).
            x: states.
            control: what each part of the network is given, of m samples or of 1 for all.
        """

    def unpacked(self, control: Tensor) -> UnpackedControl:
        """Return a control (m, P) as what each part of the network is given."""
        count, own = len(control), self.controls
        maps, vectors = control.split([control.shape[1] - self.vector_size, self.vector_size], 1)
        # Channels last, as the network's own maps lie in memory.
        coarse = maps.view(count, self.side, self.side, self.map_channels).permute(0, 3, 1, 2).split(self.map_sizes, 1)
        numbers = vectors.split(self.vector_sizes, 1)
        first = self._enlarged(coarse[0], self.sites[0].size) if "input" in own else None
        coarse = coarse[1:] if "input" in own else coarse
        sites, places = [], len(self.sites)
        time = numbers[0] if "time" in own else None
        numbers = numbers[1:] if "time" in own else numbers
        film = numbers[:places] if "film" in own else ()
        rest = numbers[len(film) :]
        pairs = rest[: 2 * places] if "low-rank" in own else ()
        mixes = rest[len(pairs) :]
        for i, site in enumerate(self.sites):
            modulation = [self._enlarged(coarse[i], site.size)] if "film-map" in own else []
            modulation += [film[i][..., None, None]] if film else []
            scale, shift = sum(modulation[1:], modulation[0]).chunk(2, 1) if modulation else (None, None)
            down = pairs[2 * i].view(count, site.channels, self.rank) if pairs else None
            up = pairs[2 * i + 1].view(count, self.rank, site.channels) if pairs else None
            mix = mixes[i].softmax(1) if mixes else None
            sites.append(SiteControl(scale, shift, down, up, mix))
        return UnpackedControl(first, time, tuple(sites))

    def _enlarged(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(maps.shape[-2:]) == tuple(size):
            return maps
        return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def best_linear_velocity(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for lines from N(0, I) to ends of unit variance, the best linear velocity's slope in the state.

    And the standard deviations of the velocity about it, and of the state; each has the shape of the times.
    """
    variance = (1 - t).square() + t.square()
    return (2 * t - 1) / variance, variance.rsqrt(), variance.sqrt()


def time_frequencies() -> Tensor:
    """Return the frequencies, (F,), of the features of a time."""
    return torch.tensor([FASTEST ** (i / (FREQUENCIES - 1)) for i in range(FREQUENCIES)])


def features_of_time(t: Tensor, frequencies: Tensor) -> Tensor:
    """Return features (m, 2 + 2 F) of times, scalar or (m,): of log(t / (1 - t)), in which levels of noise are even."""
    times = t.reshape(-1, 1).to(frequencies.dtype)
    ratio = torch.special.logit(times, eps=1e-4) / 10
    angles = math.pi / 10 * ratio * frequencies
    return torch.cat([times, ratio, angles.sin(), angles.cos()], 1)


class _Controlled(VectorField):
    def __init__(self, field: ImageField, control: Tensor) -> None:
        super().__init__(field, control)
        self.parts = field.unpacked(control.view(-1, field.control_size))

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        field, particles = cast(ImageField, self.field), x.shape[1]
        parts = self.parts
        if self.control.dim() == 2 and len(self.control) > 1 and particles > 1:
            parts = parts.repeated(particles)
        if t.dim():
            t = t.repeat_interleave(particles, 0)
        return field.velocity_of(t, x.flatten(0, 1), parts).view_as(x)


class ControlledKernel(nn.Module):
    """The 1 x 1 kernel of a block that a control decides, in whole (a mixture of shared ones) or in a low-rank update.

    Args:
        channels: channels in and out.
        kernels: number of shared kernels of a mixture; 0 for none.
    """

    def __init__(self, channels: int, kernels: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(kernels, channels, channels)) if kernels else None

    def forward(self, x: Tensor, site: SiteControl) -> Tensor:
        """Return what the kernel adds to maps (m, C, H, W)."""
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        if self.shared is not None and site.mix is not None:
            kernel = torch.einsum("mk,kio->mio", site.mix.to(x.dtype), self.shared.to(x.dtype))
            x = x + _as_maps(pixels @ kernel, x)
        if site.down is not None and site.up is not None:
            x = x + _as_maps((pixels @ site.down.to(x.dtype)) @ site.up.to(x.dtype), x)
        return x


def _as_maps(pixels: Tensor, like: Tensor) -> Tensor:
    found: Tensor = pixels.unflatten(1, like.shape[-2:])
    return found.permute(0, 3, 1, 2)


def modulated(x: Tensor, time: Tensor, site: SiteControl) -> Tensor:
    """Return normalised maps (m, C, H, W) under FiLM: that of the time, (m, 2 C, 1, 1), and that of a control."""
    scale, shift = time.to(x.dtype).chunk(2, 1)
    if site.scale is not None and site.shift is not None:
        scale, shift = scale + site.scale.to(x.dtype), shift + site.shift.to(x.dtype)
    return torch.addcmul(shift, x, 1 + scale)


def fine_features(t: Tensor, x: Tensor, step: Tensor) -> Tensor:
    """Return sine and cosine of states at periods of 1, 2 and 4 steps of the 256 levels, (m, 6 C, H, W).

    Fine noise is lost between the levels of a state; these features tell it from them (Kingma et al., "Variational
    diffusion models", NeurIPS 2021, appendix C). Each fades where the noise is much larger than its period: there it
    says nothing, and would make the flow stiff.

    Args:
        t: time, scalar or (m,).
        x: states (m, C, H, W).
        step: distance of two levels, in units of the state, ().
    """
    t = t.view(-1, 1, 1, 1)
    ends, noise = x / t.clamp_min(0.5), (1 - t) / t.clamp_min(0.5)
    found = []
    for periods in (1, 2, 4):
        angles, gate = ends * (2 * math.pi / (periods * step)), torch.exp(-0.5 * (noise / (periods * step)).square())
        found += [gate * angles.sin(), gate * angles.cos()]
    return torch.cat(found, 1)
