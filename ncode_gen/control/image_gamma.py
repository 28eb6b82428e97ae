"""Gamma of a field on images: from a code, a vector or a coarse map, to the field's control."""

import torch
from torch import Tensor, nn

from .image_field import ImageField


class ImageGamma(nn.Module):
    """Theta = gamma(c), or gamma(c, x, t) in closed loop: convolutions on coarse maps of side s, the field's own.

    A condition is a code, and after it the label as a one-hot vector, all zeros for none. A code that is a vector is
    first mapped to coarse maps; in closed loop the state, averaged to coarse maps, and the time are seen beside it.

    Args:
        dim: size d of the code.
        side: side of a code that is a map, (d / side^2, side, side); 0 for a vector.
        classes: number of classes; 0 without labels.
        field: the field to be controlled.
        hidden: channels of the hidden maps.
        closed_loop: whether state and time enter.

    Raises:
        ValueError: a code that is no map of that side, or whose side is not the field's.

    >>> from ncode_gen.control import DenseUNetField
    >>> field = DenseUNetField((3, 16, 16), ("film-map", "low-rank"), side=4, width=8)
    >>> ImageGamma(32, 4, 0, field, 16)(torch.randn(5, 32)).shape[1] == field.control_size
    True
    """

    def __init__(
        self, dim: int, side: int, classes: int, field: ImageField, hidden: int = 128, *, closed_loop: bool = False
    ) -> None:
        super().__init__()
        if side and (dim % side**2 or side != field.side):
            raise ValueError(f"{dim} numbers are no map of side {side}, or the field's maps have side {field.side}")
        # A vector that decides nothing over space needs no maps.
        flat = not (side or field.map_channels or closed_loop)
        self.dim, self.classes, self.side, self.hidden = dim, classes, 1 if flat else field.side, hidden
        self.channels = dim // side**2 if side else 0
        cells, kernel = self.side**2, 1 if flat else 3
        self.code: nn.Module = (
            nn.Conv2d(self.channels, hidden, 3, padding=1) if side else nn.Linear(dim, hidden * cells)
        )
        self.label = nn.Linear(classes, hidden, bias=False) if classes else None
        self.state = nn.Conv2d(field.dim, hidden, 3, padding=1) if closed_loop else None
        self.clock = nn.Linear(field.time_size, hidden) if closed_loop else None
        self.time_features = field.time_features
        self.body = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.maps = nn.Conv2d(hidden, field.map_channels, 1) if field.map_channels else None
        self.vectors = (
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, field.vector_size))
            if field.vector_size
            else None
        )
        start = field.map_channels * field.side**2
        with torch.no_grad():
            if self.maps is not None:
                self.maps.weight.normal_(0.0, 0.3 / hidden**0.5)
                assert self.maps.bias is not None
                self.maps.bias.zero_()
            if self.vectors is not None:
                last = self.vectors[2]
                assert isinstance(last, nn.Linear)
                last.weight.normal_(0.0, 0.3 / hidden**0.5)
                last.bias.copy_(field.initial_control()[start:])

    def forward(self, condition: Tensor, state: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Return controls (n, P).

        Args:
            condition: codes and labels, (n, d + classes).
            state: coarse maps of the states, flattened, (n, C s s), in closed loop.
            t: time, scalar or (n,), in closed loop.
        """
        code, label = condition.split([self.dim, self.classes], 1)
        if self.channels:
            maps = self.code(code.unflatten(1, (self.channels, self.side, self.side)))
        else:
            maps = self.code(code).unflatten(1, (self.hidden, self.side, self.side))
        if self.label is not None:
            maps = maps + self.label(label)[..., None, None]
        if self.state is not None and self.clock is not None:
            assert state is not None and t is not None
            maps = maps + self.state(state.unflatten(1, (-1, self.side, self.side)))
            maps = maps + self.clock(self.time_features(t))[..., None, None]
        maps = nn.functional.silu(maps)
        maps = nn.functional.silu(maps + self.body(maps))
        parts = []
        if self.maps is not None:
            parts.append(self.maps(maps).permute(0, 2, 3, 1).flatten(1))
        if self.vectors is not None:
            parts.append(self.vectors(maps.mean((2, 3))))
        return torch.cat(parts, 1)
