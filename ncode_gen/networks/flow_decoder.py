"""The N-CODE decoder: a feature map flows into the image under dynamics that the latent decides."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..control import ControlHead, ControlledODE, NormalisedField, OpenController
from ..solvers import SolveOptions, casting_to
from .blocks import group_norm, pyramid
from .decoders import doubled


def _ups(channels: Sequence[int], sizes: Sequence[tuple[int, int]], out: int) -> list[nn.Module]:
    """Return what leads from each size to the next, and at last to the image's channels; of one size, just these."""
    if len(sizes) == 1:
        return [nn.Conv2d(channels[0], out, 3, padding=1)]
    ups: list[nn.Module] = [
        nn.Sequential(nn.Upsample(size=size), nn.Conv2d(low, high, 3, padding=1))
        for (low, high), size in zip(pairwise(channels), sizes[1:-1], strict=True)
    ]
    return [*ups, doubled(channels[-1], out, sizes[-2], sizes[-1])]


class _Level(nn.Module):
    """What a map passes at one resolution: its flows, one after the other, and then a step up.

    Args:
        features: number of features that decide the control.
        channels: channels of the map.
        flows: how many flows.
        steps: steps of the midpoint method in each.
        up: what leads to the next resolution, or to the image.
    """

    def __init__(self, features: int, channels: int, flows: int, steps: int, up: nn.Module) -> None:
        super().__init__()
        self.flows = nn.ModuleList()
        for _ in range(flows):
            field = NormalisedField(channels, channels)
            head = ControlHead(features, field)
            self.flows.append(ControlledODE(field, OpenController(head), options=SolveOptions("midpoint", steps)))
        self.up = nn.Sequential(group_norm(channels), nn.SiLU(), up)

    def each(self) -> list[ControlledODE]:
        """Return the flows in their order."""
        return [cast(ControlledODE, flow) for flow in self.flows]


class FlowDecoder(nn.Module):
    """Controlled convolutional flows at each resolution from the smallest to half the image's.

    A canvas, the same for all latents or a linear map of the latent, flows for a share of the time [0, 1] under a
    convolutional field, is enlarged, flows on, and becomes the image when t = 1. Kernels are shared; the FiLM of all
    channels is the control, gamma(z). All flows start as the identity.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: channels at half the image's size; doubled, at most fourfold, as the side is halved.
        blocks: flows at each resolution, at least one, each with a field of its own.
        canvas: "latent" for a linear map of the latent, "learned" for one canvas that all latents share.
        steps: steps of the midpoint method in each flow.

    Raises:
        ValueError: another canvas.

    >>> decoder = FlowDecoder(8, (1, 28, 28), width=8, blocks=1)
    >>> decoder(torch.randn(5, 8)).shape, decoder.trajectory(torch.randn(5, 8), torch.tensor([0.0, 0.5, 1.0])).shape
    (torch.Size([5, 1, 28, 28]), torch.Size([3, 5, 1, 28, 28]))
    """

    def __init__(
        self, dim: int, shape: tuple[int, int, int], width: int, blocks: int, canvas: str = "latent", steps: int = 2
    ) -> None:
        super().__init__()
        if canvas not in ("latent", "learned"):
            raise ValueError(f'canvas must be "latent" or "learned", got {canvas!r}')
        sizes = pyramid(shape[1], shape[2])[::-1]
        count = max(len(sizes) - 1, 1)
        channels = [width * min(2**level, 4) for level in reversed(range(count))]
        start = (channels[0], *sizes[0])
        self.canvas = nn.Parameter(0.5 * torch.randn(start)) if canvas == "learned" else None
        self.paint = (
            nn.Sequential(nn.Linear(dim, math.prod(start)), nn.Unflatten(1, start)) if canvas == "latent" else None
        )
        trunk = 2 * width
        self.trunk = nn.Sequential(nn.Linear(dim, trunk), nn.SiLU())
        ups = _ups(channels, sizes, shape[0])
        self.levels = nn.ModuleList(
            _Level(trunk, maps, max(1, blocks), steps, up) for maps, up in zip(channels, ups, strict=True)
        )

    def _each(self) -> list[_Level]:
        return [cast(_Level, level) for level in self.levels]

    def _start(self, latents: Tensor) -> Tensor:
        if self.canvas is not None:
            return self.canvas.expand(len(latents), -1, -1, -1)
        assert self.paint is not None
        maps: Tensor = self.paint(latents)
        return maps

    def _grow(self, maps: Tensor, level: int) -> Tensor:
        """Enlarge maps of a level up to the image without further flow."""
        for above in self._each()[level:]:
            maps = above.up(maps)
        return maps

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        control, maps = self.trunk(latents).to(latents.dtype), self._start(latents)
        precision = casting_to(latents)
        for level in self._each():
            for flow in level.each():
                maps = flow(maps.to(latents.dtype), control, options=flow.options.but(precision=precision)).state
            maps = level.up(maps)
        return maps

    def trajectory(self, latents: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """Return what the image is if the flow stops at each of `times`.

        Args:
            latents: (n, dim).
            times: rising times in [0, 1], shape (T,); at 1 the last image is `forward`'s.

        Returns:
            Maps of shape (T, n, C, H, W).

        Raises:
            ValueError: times that fall, or lie outside [0, 1].
        """
        wanted = torch.as_tensor(times, dtype=torch.float32)
        inside = wanted.numel() and bool(((wanted >= 0) & (wanted <= 1)).all())  # a NaN is neither
        if wanted.dim() != 1 or not inside or bool((wanted.diff() < 0).any()):
            raise ValueError(f"times must rise within [0, 1], got {wanted.tolist()}")
        control, maps = self.trunk(latents).to(latents.dtype), self._start(latents)
        precision = casting_to(latents)
        levels = self._each()
        flows = [(number, flow) for number, level in enumerate(levels) for flow in level.each()]
        images, before = [], 0
        for place, (level, flow) in enumerate(flows):
            if level > before:
                maps, before = levels[before].up(maps), level
            own, last = wanted * len(flows) - place, place == len(flows) - 1
            here = own[(own >= 0) & ((own < 1) | last & (own <= 1))]
            maps, options = maps.to(latents.dtype), flow.options.but(precision=precision)
            end = flow(maps, control, options=options).state
            for time in here:
                # Frames between are solved apart, so that they do not refine what the last image comes from.
                between = torch.stack([torch.zeros(()), time]).to(latents.device)
                at = end if time == 1 else maps
                if 0 < time < 1:
                    at = flow(maps, control, times=between, options=options).state
                images.append(self._grow(at, level))
            maps = end
        return torch.stack(images)
