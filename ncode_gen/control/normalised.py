"""Convolutional fields behind a GroupNorm, for flows of feature maps, whose density is not needed."""

from typing import cast

import torch
from torch import Tensor, nn

from .field import Field, VectorField, clock

GROUP = 8


def norm_groups(channels: int) -> int:
    """Return the number of groups of a GroupNorm: about eight channels each, or one group where these do not divide.

    >>> norm_groups(64), norm_groups(36), norm_groups(34), norm_groups(3)
    (8, 4, 1, 1)
    """
    groups = max(1, channels // GROUP)
    return groups if channels % groups == 0 else 1


class NormalisedField(Field):
    """The branch of a residual block as a velocity: GroupNorm, two convolutions, and each sample's FiLM.

    dx/dt = (g3, b3) * W2 a((g2, b2 + t c) * W1 a((g1, b1) * norm(x))), where a is SiLU, (g, b) * y stands for
    g y + b in every channel, and all g, b and c are the control; all samples share the kernels W1 and W2. The norm
    keeps the velocity at the scale that the control says, however far a map has moved, so that few steps solve it well.
    Its divergence is found by automatic differentiation.

    Sources: He et al., "Identity mappings in deep residual networks", ECCV 2016; Wu and He, "Group normalization",
    ECCV 2018; Perez et al., "FiLM", AAAI 2018.

    Args:
        channels: number of channels C.
        hidden: channels of the hidden layer.
        kernel: side of both kernels, odd.

    Raises:
        ValueError: a size below one, or an even kernel.

    >>> field = NormalisedField(3, 8)
    >>> field.control_size  # 2 x 3 + 3 x 8 + 2 x 3
    36
    >>> field(0.0, torch.ones(5, 3, 6, 6), field.initial_control()).shape
    torch.Size([5, 3, 6, 6])
    """

    axes = 3

    def __init__(self, channels: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        if min(channels, hidden) < 1:
            raise ValueError(f"a field needs channels and hidden >= 1, got {channels} and {hidden}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"the side of a kernel must be odd, got {kernel}")
        self.dim, self.hidden, self.summary_size = channels, hidden, 2 * channels
        self.groups = norm_groups(channels)
        self.first = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, bias=False)
        self.second = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2, bias=False)
        self.sizes = (channels, channels, hidden, hidden, hidden, channels, channels)
        self.control_size = sum(self.sizes)

    def bind(self, control: Tensor) -> VectorField:
        """Return the vector field under `control`."""
        return _Normalised(self, control)

    def initial_control(self, generator: torch.Generator | None = None) -> Tensor:
        """Return scales of one before and between the convolutions, and zeros: the flow is the identity."""
        scales = (1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        return torch.cat([torch.full((size,), scale) for scale, size in zip(scales, self.sizes, strict=True)])


class _Normalised(VectorField):
    def __init__(self, field: NormalisedField, control: Tensor) -> None:
        super().__init__(field, control)
        self.parts = control.view(-1, field.control_size).split(field.sizes, 1)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        field, particles = cast(NormalisedField, self.field), x.shape[1]

        def of_maps(values: Tensor) -> Tensor:
            """Return numbers of channels (n, o), or (1, o) of all samples, as they meet maps (n * K, o, H, W)."""
            rows = values.repeat_interleave(particles, 0) if len(values) > 1 and particles > 1 else values
            return rows[..., None, None]

        scale, shift, inner_scale, inner_shift, time, outer_scale, outer_shift = self.parts
        maps = nn.functional.group_norm(x.flatten(0, 1), field.groups)
        maps = nn.functional.silu(torch.addcmul(of_maps(shift), of_maps(scale), maps))
        inner = of_maps(inner_shift + clock(t) * time)
        maps = nn.functional.silu(torch.addcmul(inner, of_maps(inner_scale), field.first(maps)))
        return torch.addcmul(of_maps(outer_shift), of_maps(outer_scale), field.second(maps)).view_as(x)
