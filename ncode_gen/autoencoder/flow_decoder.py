"""The N-CODE decoder: a feature map flows into the image under dynamics that the latent decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..control import ControlledODE, ConvField, OpenController, Solver
from ..control.controllers import ControlHead
from .encoders import pyramid

__all__ = ["FlowDecoder"]


class _Enlarge(nn.Module):
    """Repeats pixels up to the next size, then mixes them by a convolution."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.mix = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.mix(nn.functional.interpolate(maps, size=self.size, mode="nearest"))
        return out


class FlowDecoder(nn.Module):
    """Controlled convolutional flows, one for each resolution from the smallest to the image's own.

    A canvas, the same for all latents or a linear map of the latent, flows for a share of the time [0, 1] under a
    convolutional field, is enlarged, flows on, and is read out as the image when t = 1. Kernels are shared; gains and
    biases of all channels are the control, gamma(z). All flows start as the identity.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: twice the channels at full size; doubled as the side is halved, at most up to four times `width`.
        blocks: hidden layers of each field, at least one.
        canvas: "latent" for a linear map of the latent, "learned" for one canvas that all latents share.
        steps: steps of the midpoint method at each resolution.

    >>> decoder = FlowDecoder(8, (1, 28, 28), width=8, blocks=1)
    >>> decoder(torch.randn(5, 8)).shape, decoder.film(torch.randn(5, 8), torch.tensor([0.0, 0.5, 1.0])).shape
    (torch.Size([5, 1, 28, 28]), torch.Size([3, 5, 1, 28, 28]))
    """

    def __init__(
        self, dim: int, shape: tuple[int, int, int], width: int, blocks: int, canvas: str = "latent", steps: int = 1
    ) -> None:
        super().__init__()
        if canvas not in ("latent", "learned"):
            raise ValueError(f'canvas must be "latent" or "learned", got {canvas!r}')
        sizes = pyramid(shape[1], shape[2])[::-1]
        channels = [max(1, width * min(2**level, 8) // 2) for level in range(len(sizes))][::-1]
        start = (channels[0], *sizes[0])
        self.canvas = nn.Parameter(0.5 * torch.randn(start)) if canvas == "learned" else None
        self.paint = (
            nn.Sequential(nn.Linear(dim, math.prod(start)), nn.Unflatten(1, start)) if canvas == "latent" else None
        )
        trunk = 2 * width
        self.trunk = nn.Sequential(nn.Linear(dim, trunk), nn.SiLU())
        self.flows = nn.ModuleList()
        for maps in channels:
            field = ConvField(maps, (maps,) * max(1, blocks), control="gains", activation="silu")
            head = ControlHead(trunk, field, spread=1.0)
            self.flows.append(ControlledODE(field, OpenController(head), solver=Solver("midpoint", steps)))
        self.enlarge = nn.ModuleList(
            _Enlarge(low, high, size) for (low, high), size in zip(pairwise(channels), sizes[1:], strict=True)
        )
        self.read = nn.Sequential(nn.SiLU(), nn.Conv2d(channels[-1], shape[0], 3, padding=1))

    def _start(self, latents: Tensor) -> Tensor:
        if self.canvas is not None:
            return self.canvas.expand(len(latents), -1, -1, -1)
        assert self.paint is not None
        maps: Tensor = self.paint(latents)
        return maps

    def _grow(self, maps: Tensor, after: int) -> Tensor:
        """Enlarge and read out maps of resolution `after` without further flow."""
        for enlarge in self.enlarge[after:]:
            maps = enlarge(maps)
        out: Tensor = self.read(maps)
        return out

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        control, maps = self.trunk(latents), self._start(latents)
        for level, flow in enumerate(self.flows):
            maps = flow(maps.float(), control).state
            if level < len(self.enlarge):
                maps = self.enlarge[level](maps)
        out: Tensor = self.read(maps)
        return out

    def film(self, latents: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """Return what the read-out sees of the canvas if the flow stops at each of `times`.

        Args:
            latents: (n, dim).
            times: rising times in [0, 1], shape (T,); at 1 the last picture is `forward`'s.

        Returns:
            Maps of shape (T, n, C, H, W).

        Raises:
            ValueError: times that fall, or lie outside [0, 1].
        """
        wanted = torch.as_tensor(times, dtype=torch.float32)
        if bool((wanted.diff() < 0).any()) or float(wanted.min()) < 0 or float(wanted.max()) > 1:
            raise ValueError(f"times must rise within [0, 1], got {wanted.tolist()}")
        control, maps = self.trunk(latents), self._start(latents)
        pictures, count = [], len(self.flows)
        for level, flow in enumerate(self.flows):
            own = wanted * count - level
            here = own[(own >= 0) & ((own < 1) | (level == count - 1) & (own <= 1))]
            end = flow(maps.float(), control).state
            for time in here:
                # Frames between are solved apart, so that they do not refine what the last picture comes from.
                between = torch.stack([torch.zeros(()), time]).to(latents.device)
                at = end if time == 1 else maps if time == 0 else flow(maps.float(), control, times=between).state
                pictures.append(self._grow(at, level))
            maps = end
            if level < len(self.enlarge):
                maps = self.enlarge[level](maps)
        return torch.stack(pictures)
