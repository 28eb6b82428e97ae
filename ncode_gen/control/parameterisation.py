"""Control parameterisations: which part of a layer's weights is control, and which all samples share.

| parameterisation | each sample's own | weights of control in a layer of i inputs and o outputs |
|---|---|---|
| `film` | FiLM: a scale and a shift of every output | 2 o |
| `low-rank` | an update of rank r of shared weights, and the biases | r (i + o) + o |
| `last` | all weights of the last layer | (i + 1) o there, none elsewhere |
| `all` | all weights of every layer | (i + 1) o |

A layer that sees the time has o more. Sources: Perez et al., "FiLM", AAAI 2018; Grathwohl et al.,
"FFJORD", ICLR 2019, section 4.2 (low-rank updates of an amortised flow).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .field import clock

Control = Literal["all", "last", "low-rank", "film"]
LayerControl = Literal["all", "shared", "low-rank", "film"]
Products = Literal["float32", "bfloat16"]


def check_control(control: str, rank: int) -> None:
    """Raise a ValueError unless a parameterisation has that name, and its updates a rank.

    >>> check_control("first", 4)
    Traceback (most recent call last):
    ValueError: control must be one of all, last, low-rank, film, got 'first'
    """
    if control not in get_args(Control):
        raise ValueError(f"control must be one of {', '.join(get_args(Control))}, got {control!r}")
    if rank < 1:
        raise ValueError(f"the rank of an update must be at least 1, got {rank}")


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight, in the precision of `weight` and the dtype of `x`; shared (2-D) or per sample (3-D)."""
    if weight.dtype != x.dtype:
        return (x.to(weight.dtype) @ weight).to(x.dtype)
    return x @ weight if weight.dim() == 2 else torch.bmm(x, weight)


def _row(values: Tensor) -> Tensor:
    """Return a shift or scale, (o,) or (n, o), as it meets points (n, M, o)."""
    return values if values.dim() == 1 else values.unsqueeze(-2)


@dataclass(frozen=True, eq=False)  # torch.compile hashes what it sees called, and tensors have no one hash
class Affine:
    """A layer under one control: x -> scale * (x @ weight) + (x @ down) @ up + bias + t * time.

    Attributes:
        weight: shape (i, o), shared, or (n, i, o).
        bias: shape (o,) or (n, o).
        time: weights of the time, as `bias`; None where the layer does not see the time.
        scale: as `bias`, or None.
        down: shape (i, r) or (n, i, r), or None.
        up: shape (r, o) or (n, r, o), or None.
    """

    weight: Tensor
    bias: Tensor
    time: Tensor | None = None
    scale: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Apply the layer to points of shape (n, M, i)."""
        bias = self.bias if self.time is None else self.bias + clock(t) * self.time
        if self.scale is None and self.down is None and self.weight.dim() == 3 and self.weight.dtype == x.dtype:
            return torch.baddbmm(_row(bias), x, self.weight) if bias.dim() == 2 else x @ self.weight + bias
        y = _multiply(x, self.weight)
        if self.scale is not None:
            y = _row(self.scale) * y
        if self.down is not None and self.up is not None:
            y = y + _multiply(_multiply(x, self.down), self.up)
        return y + _row(bias)

    def dense(self) -> Tensor:
        """Return the matrix that multiplies x, shape (i, o) or (n, i, o)."""
        matrix = self.weight.to(self.bias.dtype)
        if self.scale is not None:
            matrix = matrix * self.scale.unsqueeze(-2)
        if self.down is not None and self.up is not None:
            matrix = matrix + self.down.to(matrix.dtype) @ self.up.to(matrix.dtype)
        return matrix


class ControlledLayer(nn.Module):
    """An affine layer, part of whose weights is control; the rest are parameters that all samples share.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        control: what of the layer is control; "shared" for nothing.
        rank: rank of an update ("low-rank").
        time: whether the layer sees the time.
        zero: whether it starts as the zero map (for a flow that starts as the identity).
        products: precision of the matrix products; weights are converted once a solve.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        control: LayerControl = "all",
        rank: int = 4,
        time: bool = False,
        zero: bool = False,
        products: Products = "float32",
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.control, self.rank, self.time, self.zero = (
            inputs,
            outputs,
            control,
            rank,
            time,
            zero,
        )
        self.products = products
        biases = [outputs] * (1 + time)
        parts = {
            "all": [inputs * outputs, *biases],
            "film": [outputs, *biases],
            "low-rank": [inputs * rank, rank * outputs, *biases],
            "shared": [],
        }
        self.parts: list[int] = parts[control]
        self.size = sum(self.parts)
        if control == "shared":
            self.biases = nn.Parameter(torch.zeros(len(biases), outputs))
        if control != "all":
            zeroed = zero and control != "film"  # with "film" the scale is zero instead
            self.weight = nn.Parameter(torch.zeros(inputs, outputs) if zeroed else self._weight(None))

    def bind(self, parts: Sequence[Tensor]) -> Affine:
        """View packed weights as a layer, without a copy.

        Args:
            parts: the weights cut into pieces of the sizes `parts`, shapes (..., size). All pieces of a field come
                from one `split`, whose gradient is one concatenation.
        """
        if self.control == "all":
            weight, *biases = parts
            return self._affine(weight.unflatten(-1, (self.inputs, self.outputs)), biases)
        if self.control == "film":
            scale, *biases = parts
            return self._affine(self.weight, biases, scale=scale)
        if self.control == "low-rank":
            down, up, *biases = parts
            down = down.unflatten(-1, (self.inputs, self.rank))
            return self._affine(self.weight, biases, down=down, up=up.unflatten(-1, (self.rank, self.outputs)))
        return self._affine(self.weight, self.biases.unbind())

    def _affine(
        self,
        weight: Tensor,
        biases: Sequence[Tensor],
        scale: Tensor | None = None,
        down: Tensor | None = None,
        up: Tensor | None = None,
    ) -> Affine:
        if self.products == "bfloat16":
            weight = weight.to(torch.bfloat16)
            down, up = (None if factor is None else factor.to(torch.bfloat16) for factor in (down, up))
        return Affine(weight, biases[0], biases[1] if self.time else None, scale, down, up)

    def initial(self, generator: torch.Generator | None = None) -> Tensor:
        """Return random packed weights, shape (size,): normal of variance 1 / inputs, zero biases; or the zero map."""
        rows = torch.zeros((1 + self.time) * self.outputs)
        if self.control == "all":
            weight = torch.zeros(self.inputs, self.outputs) if self.zero else self._weight(generator)
            return torch.cat([weight.flatten(), rows])
        if self.control == "film":
            return torch.cat([torch.full((self.outputs,), 0.0 if self.zero else 1.0), rows])
        if self.control == "low-rank":
            down = torch.randn(self.inputs * self.rank, generator=generator) / math.sqrt(self.inputs)
            return torch.cat([down, torch.zeros(self.rank * self.outputs), rows])
        return torch.zeros(0)

    def _weight(self, generator: torch.Generator | None) -> Tensor:
        return torch.randn(self.inputs, self.outputs, generator=generator) / math.sqrt(self.inputs)

    def extra_repr(self) -> str:
        """Show sizes and control."""
        rank = f", rank={self.rank}" if self.control == "low-rank" else ""
        return (
            f"{self.inputs} -> {self.outputs}, control={self.control}{rank}, time={self.time}, control_size={self.size}"
        )
