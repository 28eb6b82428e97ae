"""A field on images: a U-net whose FiLM, and the conditioning image that it is given, are each sample's own."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from .field import Field, VectorField

SMALLEST, LARGE, WIDEN, EXPAND, KERNEL, TIMES = 8, 16, 4, 2, 5, 8


class _Block(nn.Module):
    """A depthwise convolution and two 1 x 1 around a skip; it starts as the identity.

    Scales and shifts (FiLM), two numbers for each channel before the first 1 x 1 and for each unit after it, come with
    the call. Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022, figure 4, with the norm over all channels and
    pixels.

    Args:
        channels: number of channels in and out.
        time: number of features of the time.
    """

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        units = EXPAND * channels
        self.sizes = (channels, channels, units, units)
        self.spread = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.GroupNorm(1, channels, affine=False)
        self.up, self.down = nn.Conv2d(channels, units, 1), nn.Conv2d(units, channels, 1)
        self.clock = nn.Linear(time, sum(self.sizes))
        for value in (self.down.weight, *self.clock.parameters()):
            nn.init.zeros_(value)

    def forward(self, maps: Tensor, control: Tensor, time: Tensor) -> Tensor:
        parts = (control + self.clock(time)).split(self.sizes, -1)
        scale, shift, inner_scale, inner_shift = (part[..., None, None] for part in parts)
        units = torch.addcmul(shift, 1 + scale, self.norm(self.spread(maps)))
        units = torch.addcmul(inner_shift, 1 + inner_scale, self.up(units))
        units = nn.functional.silu(units, inplace=not torch.is_grad_enabled())  # new memory costs a CPU more than this
        out: Tensor = maps + self.down(units)
        return out


def _blocks(level: nn.Module) -> list[_Block]:
    return [cast(_Block, block) for block in level.children()]


class UNetField(Field):
    """A convolutional network over several resolutions, for states that are images of one size.

    What all samples share are the kernels, and how the time enters. A control is, for each sample, the FiLM of
    all channels and units, and after it a conditioning image of the size of the state, which the first layer is given
    beside the state.

    The field is meant for flow matching from noise at t = 0, independent of the end, to states of unit variance at
    t = 1, along straight lines. The network therefore adds to the velocity that is best where the ends are noise too,
    and is scaled by what that one leaves uncertain: its inputs and what it has to learn have unit variance at all times
    (the preconditioning of Karras et al., "Elucidating the design space of diffusion-based generative models", NeurIPS
    2022, section 5, for straight lines). At the start of training it adds nothing.

    Images above 16 pixels are taken in patches of 2 x 2; the side is then halved until it is at most 8. Sizes that
    cannot be halved so often are padded by their border inside.

    Args:
        shape: (C, H, W) of states and conditioning images.
        width: channels at the first resolution; doubled as the side is halved, at most up to four times `width`.
        blocks: blocks at each resolution, on the way down and on the way up.
        noise: standard deviation of the states at t = 0, where that at t = 1 is 1.

    Raises:
        ValueError: a size below one, or a noise that is not above 0.

    >>> field = UNetField((1, 28, 28), width=8, blocks=1)
    >>> control = field.pack(torch.randn(5, field.modulations), torch.rand(5, 1, 28, 28))
    >>> field(1.0, torch.rand(5, 1, 28, 28), control).shape
    torch.Size([5, 1, 28, 28])
    """

    axes = 3

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 64,
        blocks: int = 1,
        noise: float = 1.0,
    ) -> None:
        super().__init__()
        if not noise > 0:
            raise ValueError(f"the noise must be above 0, got {noise}")
        if min(*shape, width, blocks) < 1:
            raise ValueError(f"image sides, width and blocks must be at least 1, got {shape}, {width} and {blocks}")
        self.shape, self.dim, self.summary_size, self.noise = shape, shape[0], 2 * shape[0], noise
        self.patch = 2 if max(shape[1:]) > LARGE else 1
        side, widths = math.ceil(max(shape[1:]) / self.patch), [width]
        while side > SMALLEST:
            side = math.ceil(side / 2)
            widths.append(min(2 * widths[-1], WIDEN * width))
        self.multiple = self.patch * 2 ** (len(widths) - 1)
        pixels = shape[0] * self.patch**2
        time = 2 * width
        self.clock = nn.Sequential(nn.Linear(1 + 2 * TIMES, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        counts = torch.tensor([float(k) for k in range(1, TIMES + 1)])
        self.register_buffer("frequencies", math.pi / 2 * counts, persistent=False)
        self.frequencies: Tensor
        self.first = nn.Conv2d(2 * pixels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.enlarge, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            self.down.append(nn.ModuleList(_Block(channels, time) for _ in range(blocks)))
            self.up.append(nn.ModuleList(_Block(channels, time) for _ in range(blocks)))
            if level + 1 < len(widths):
                below = widths[level + 1]
                self.shrink.append(nn.Conv2d(channels, below, 2, stride=2))
                self.enlarge.append(nn.Conv2d(below, 4 * channels, 1))
                self.join.append(nn.Conv2d(2 * channels, channels, 1))
        self.last = nn.Conv2d(width, pixels, 3, padding=1)
        for value in self.last.parameters():
            nn.init.zeros_(value)
        self.sizes = [sum(block.sizes) for level in (*self.down, *reversed(self.up)) for block in _blocks(level)]
        self.modulations = sum(self.sizes)
        self.control_size = self.modulations + math.prod(shape)

    def pack(self, modulations: Tensor, images: Tensor) -> Tensor:
        """Return controls (n, P) of FiLM (n, `modulations`) and conditioning images (n, C, H, W)."""
        return torch.cat([modulations, images.flatten(1)], 1)

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Conditioned(self, control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros: no scale or shift differs from its start, and the conditioning image is empty."""
        return torch.zeros(self.control_size)

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the preconditioning at times t (...): the velocity's slope in the state, and two standard deviations.

        The best guess at a state x is the slope times x if the ends of the lines are independent noise. The standard
        deviations, each (...), are those of the velocity about this guess, and of the state.
        """
        variance = ((1 - t) * self.noise).square() + t.square()
        return (t - (1 - t) * self.noise**2) / variance, self.noise * variance.rsqrt(), variance.sqrt()

    def apply_network(self, t: Tensor, images: Tensor, conditions: Tensor, modulations: Tensor) -> Tensor:
        """Return what the network adds to the preconditioning's velocity, (m, C, H, W), in units of its deviation.

        Args:
            t: time, scalar or (m,).
            images: states divided by their standard deviation, (m, C, H, W).
            conditions: conditioning images, (m, C, H, W).
            modulations: FiLM, (m, `modulations`) or those of all, (1, `modulations`).
        """
        angles = t.reshape(-1, 1) * self.frequencies
        time = self.clock(torch.cat([t.reshape(-1, 1), angles.sin(), angles.cos()], 1))
        parts = iter(modulations.split(self.sizes, 1))
        maps = self._padded(torch.cat([images, conditions], 1))
        maps = self.first(nn.functional.pixel_unshuffle(maps, self.patch) if self.patch > 1 else maps)
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            for block in _blocks(blocks):
                maps = block(maps, next(parts), time)
            if level < len(self.shrink):
                kept.append(maps)
                maps = self.shrink[level](maps)
        for level in reversed(range(len(self.up))):
            if level < len(self.enlarge):
                above = nn.functional.pixel_shuffle(self.enlarge[level](maps), 2)
                maps = self.join[level](torch.cat([above, kept[level]], 1))
            for block in _blocks(self.up[level]):
                maps = block(maps, next(parts), time)
        out = self.last(nn.functional.silu(maps))
        out = nn.functional.pixel_shuffle(out, self.patch) if self.patch > 1 else out
        found: Tensor = out[..., : self.shape[1], : self.shape[2]]
        return found

    def _padded(self, maps: Tensor) -> Tensor:
        height, width = (-side % self.multiple for side in self.shape[1:])
        return nn.functional.pad(maps, (0, width, 0, height), mode="replicate") if height or width else maps


class _Conditioned(VectorField):
    def __init__(self, field: UNetField, control: Tensor) -> None:
        super().__init__(field, control)
        rows = control.view(-1, field.control_size)
        self.modulations, images = rows.split([field.modulations, math.prod(field.shape)], 1)
        self.conditions = images.unflatten(1, field.shape)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        field = self.field
        assert isinstance(field, UNetField)
        images, particles = x.flatten(0, 1), x.shape[1]
        modulations, conditions = self.modulations, self.conditions
        if len(conditions) > 1 and particles > 1:
            modulations, conditions = (part.repeat_interleave(particles, 0) for part in (modulations, conditions))
        if t.dim():
            t = t.repeat_interleave(particles, 0)
        conditions = conditions.expand(len(images), -1, -1, -1)
        slope, uncertain, deviation = (part.view(-1, 1, 1, 1) for part in field.preconditioning(t))
        added = field.apply_network(t, images / deviation, conditions, modulations)
        return (slope * images + uncertain * added).view_as(x)
