"""A U-net of dense 3 x 3 convolutions with attention at its coarsest size, as a field that a code controls."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .image_field import (
    ControlledKernel,
    ImageControl,
    ImageField,
    Site,
    SiteControl,
    UnpackedControl,
    fine_features,
    modulated,
)
from .normalised import norm_groups

SMALLEST, LARGE, HEAD, TIMES = 8, 16, 32, 4


class _Block(nn.Module):
    """Two 3 x 3 convolutions around a skip, with FiLM before the first; it starts as the identity."""

    def __init__(self, channels: int, time: int, kernels: int, *, controlled: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels), channels, affine=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.clock = nn.Linear(time, 2 * channels)
        self.kernel = ControlledKernel(channels, kernels) if controlled else None
        for value in (self.second.weight, *self.clock.parameters()):
            nn.init.zeros_(value)

    def forward(self, maps: Tensor, time: Tensor, site: SiteControl) -> Tensor:
        units = modulated(self.norm(maps).to(maps.dtype), self.clock(time)[..., None, None], site)
        units = self.first(nn.functional.silu(units))
        if self.kernel is not None:
            units = self.kernel(units, site)
        out: Tensor = maps + self.second(nn.functional.silu(units))
        return out


class _DepthwiseBlock(nn.Module):
    """A depthwise 5 x 5 convolution and two 1 x 1 around a skip, with FiLM between; it starts as the identity.

    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022, figure 4.
    """

    def __init__(self, channels: int, time: int, kernels: int, *, controlled: bool) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels, affine=False)
        self.up, self.down = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)
        self.clock = nn.Linear(time, 2 * channels)
        self.kernel = ControlledKernel(channels, kernels) if controlled else None
        for value in (self.down.weight, *self.clock.parameters()):
            nn.init.zeros_(value)

    def forward(self, maps: Tensor, time: Tensor, site: SiteControl) -> Tensor:
        spread = self.norm(self.spread(maps)).to(maps.dtype)
        units = modulated(spread, self.clock(time)[..., None, None], site)
        if self.kernel is not None:
            units = self.kernel(units, site)
        out: Tensor = maps + self.down(nn.functional.silu(self.up(units)))
        return out


class _Attention(nn.Module):
    """Attention between all pixels around a skip; it starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD) if channels % HEAD == 0 else 1
        self.norm = nn.GroupNorm(norm_groups(channels), channels)
        self.into, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, maps: Tensor) -> Tensor:
        parts = self.into(self.norm(maps).to(maps.dtype)).flatten(2).unflatten(1, (3, self.heads, -1))
        query, key, value = parts.transpose(-1, -2).unbind(1)
        # Written out: at most 64 pixels, and the fused one has no forward derivatives, which divergences take.
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = weights.to(value.dtype) @ value
        out: Tensor = maps + self.out(mixed.transpose(-1, -2).flatten(1, 2).unflatten(2, maps.shape[-2:]))
        return out


class DenseUNetField(ImageField):
    """Residual blocks of convolutions over several resolutions, with attention at the coarsest.

    Dense 3 x 3 convolutions are near the peak of CPUs and GPUs; depthwise ones have a fifth of the weights.

    Images above 16 pixels are taken in patches of 2 x 2; the side is then halved until it is at most 8. Sizes that
    cannot be halved so often are padded by their border inside.

    Args:
        shape: (C, H, W) of the states.
        control: which weights are each sample's own, see `ImageField`.
        side: side s of coarse maps of control.
        width: channels at the first resolution; doubled as the side is halved, at most up to four times `width`.
        blocks: blocks at each resolution but the coarsest, on the way down and on the way up.
        middle: blocks at the coarsest resolution.
        rank: rank of an update ("low-rank").
        kernels: number of kernels ("mixture").
        block: "dense" for two 3 x 3 convolutions in a block, "depthwise" for one of 5 x 5 and two of 1 x 1.
        fine: whether the network is given features of fine noise, see `fine_features`.

    Attributes:
        level_step: distance of two of the 256 levels of a pixel, in units of the state, ().

    >>> field = DenseUNetField((1, 28, 28), ("film-map",), side=4, width=8, middle=1)
    >>> field(0.5, torch.rand(5, 1, 28, 28), 0.1 * torch.randn(5, field.control_size)).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        control: Sequence[ImageControl] = ("film-map",),
        side: int = 8,
        width: int = 64,
        blocks: int = 1,
        middle: int = 4,
        rank: int = 8,
        kernels: int = 4,
        *,
        block: Literal["dense", "depthwise"] = "dense",
        fine: bool = False,
    ) -> None:
        super().__init__(shape, control, side, rank, kernels)
        if min(width, blocks, middle) < 1:
            raise ValueError(f"width and blocks must be at least 1, got {width}, {blocks} and {middle}")
        self.fine = fine
        self.register_buffer("level_step", torch.tensor(4 / 255))
        self.level_step: Tensor
        self.patch = 2 if max(shape[1:]) > LARGE else 1
        sides, channels = [tuple(-(-length // self.patch) for length in shape[1:])], [width]
        while max(sides[-1]) > SMALLEST:
            sides.append(tuple(-(-length // 2) for length in sides[-1]))
            channels.append(min(2 * channels[-1], 4 * width))
        depth = len(sides) - 1
        self.multiple = self.patch * 2**depth
        coarsest = tuple(-(-length // self.multiple) for length in shape[1:])
        sizes = [(coarsest[0] * 2 ** (depth - i), coarsest[1] * 2 ** (depth - i)) for i in range(depth + 1)]
        time = TIMES * width
        self.clock = nn.Sequential(nn.Linear(self.time_size, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        seen = shape[0] * (7 if fine else 1) * self.patch**2
        self.first = nn.Conv2d(seen, width, 3, padding=1)
        mixed = kernels if "mixture" in control else 0
        own = bool({"mixture", "low-rank"} & set(control))

        kind = _Block if block == "dense" else _DepthwiseBlock

        def row(level: int, count: int) -> nn.ModuleList:
            return nn.ModuleList([kind(channels[level], time, mixed, controlled=own) for _ in range(count)])

        self.down = nn.ModuleList([row(level, blocks) for level in range(depth)])
        self.middle = row(depth, middle)
        self.attention = _Attention(channels[-1])
        self.up = nn.ModuleList([row(level, blocks) for level in range(depth)])
        steps = list(pairwise(channels))
        self.shrink = nn.ModuleList([nn.Conv2d(above, below, 2, stride=2) for above, below in steps])
        self.enlarge = nn.ModuleList([nn.Conv2d(below, 4 * above, 1) for above, below in steps])
        self.join = nn.ModuleList([nn.Conv2d(2 * above, above, 1) for above, _ in steps])
        self.norm = nn.GroupNorm(norm_groups(width), width)
        self.last = nn.Conv2d(width, shape[0] * self.patch**2, 3, padding=1)
        for value in self.last.parameters():
            nn.init.zeros_(value)
        order = [level for level in range(depth) for _ in range(blocks)]
        levels = [*order, *[depth] * middle, *reversed(order)]
        self.lay_out([Site(channels[level], sizes[level]) for level in levels], width, time)

    def velocity_of(self, t: Tensor, x: Tensor, control: UnpackedControl) -> Tensor:
        """Return the velocity of states (m, C, H, W)."""
        slope, uncertain, deviation = (part.view(-1, 1, 1, 1) for part in self.preconditioning(t))
        seen = torch.cat([x / deviation, fine_features(t, x, self.level_step)], 1) if self.fine else x / deviation
        return slope * x + uncertain * self.apply_network(t, seen, control).to(x.dtype)

    def apply_network(self, t: Tensor, x: Tensor, control: UnpackedControl) -> Tensor:
        """Return what the network makes of inputs (m, C', H, W): maps (m, C, H, W)."""
        time, left = self.clock(self.time_features(t)), iter(control.sites)
        if control.time is not None:
            time = time + control.time.to(time.dtype)
        maps = self._padded(x)
        maps = self.first(nn.functional.pixel_unshuffle(maps, self.patch) if self.patch > 1 else maps)
        if control.first is not None:
            maps = maps + control.first.to(maps.dtype)
        kept: list[Tensor] = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for each in cast(nn.ModuleList, blocks):
                maps = each(maps, time, next(left))
            kept.append(maps)
            maps = shrink(maps)
        half = len(self.middle) // 2
        for number, each in enumerate(self.middle):
            if number == half:
                maps = self.attention(maps)
            maps = each(maps, time, next(left))
        for level in reversed(range(len(self.up))):
            above = nn.functional.pixel_shuffle(self.enlarge[level](maps), 2)
            maps = self.join[level](torch.cat([above, kept[level]], 1))
            for each in cast(nn.ModuleList, self.up[level]):
                maps = each(maps, time, next(left))
        out = self.last(nn.functional.silu(self.norm(maps).to(maps.dtype)))
        out = nn.functional.pixel_shuffle(out, self.patch) if self.patch > 1 else out
        found: Tensor = out[..., : self.shape[1], : self.shape[2]]
        return found

    def _padded(self, maps: Tensor) -> Tensor:
        height, width = (-length % self.multiple for length in self.shape[1:])
        return nn.functional.pad(maps, (0, width, 0, height), mode="replicate") if height or width else maps
