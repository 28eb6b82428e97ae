"""Arithmetic in which a sample's result does not depend, in any bit, on the batch that it is computed with.

A matrix product of a library may add in another order for another number of rows or another alignment in memory, and
some vectorised activations round the last elements of a buffer differently. Per-sample adaptive steps would turn such
last bits into other steps. Inside `batch_invariant()` products are sums of products in one order, and those
activations are composed of operations that round every element alike. Convolutions are left as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

aten = torch.ops.aten
BLOCK = 1 << 20  # elements of the largest intermediate product


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b for a (n, m, k) and b (n, k, p) or (1, k, p)."""
    cost = max(1, b.shape[1] * b.shape[2])
    rows = max(1, min(a.shape[1], BLOCK // cost))
    samples = max(1, BLOCK // (cost * rows))
    blocks = []
    for i in range(0, a.shape[0], samples):
        right = (b if b.shape[0] == 1 else b[i : i + samples]).unsqueeze(1)
        left = a[i : i + samples].unsqueeze(-1)
        blocks.append(torch.cat([(left[:, j : j + rows] * right).sum(2) for j in range(0, a.shape[1], rows)], 1))
    return torch.cat(blocks) if blocks else a.new_zeros(0, a.shape[1], b.shape[2])


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _bmm(a.unsqueeze(1), b.unsqueeze(0)).squeeze(1)


def _scaled(bias: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    return (bias if beta == 1 else beta * bias) + (product if alpha == 1 else alpha * product)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(bias, _mm(a, b), beta, alpha)


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(bias, _bmm(a, b), beta, alpha)


def _mv(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _addmv(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(bias, _mv(a, b), beta, alpha)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.relu(x) + torch.log1p(torch.exp(-(beta * x).abs())) / beta


def _silu(x: Tensor) -> Tensor:
    return x * _sigmoid(x)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + torch.erf(math.sqrt(0.5) * x))


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return scale * torch.where(x > 0, x, alpha * torch.expm1(input_scale * x))


def _pow(x: Tensor, exponent: float) -> Tensor:
    return torch.exp(exponent * torch.log(x))


def _tanh_backward(gradient: Tensor, value: Tensor) -> Tensor:
    return gradient * (1 - value * value)


def _sigmoid_backward(gradient: Tensor, value: Tensor) -> Tensor:
    return gradient * (value * (1 - value))


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    gate = _sigmoid(x)
    return gradient * (gate * (1 + x * (1 - gate)))


def _softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    return gradient * _sigmoid(beta * x)


OPERATIONS: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.mv.default: _mv,
    aten.dot.default: _mv,
    aten.addmv.default: _addmv,
    aten.sigmoid.default: _sigmoid,
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
    aten.silu.default: _silu,
    aten.silu_backward.default: _silu_backward,
    aten.tanh_backward.default: _tanh_backward,
    aten.gelu.default: _gelu,
    aten.elu.default: _elu,
    aten.pow.Tensor_Scalar: _pow,
}


class _BatchInvariant(TorchDispatchMode):
    """Replaces the operations whose rounding depends on the batch."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operation = OPERATIONS.get(func, func)
        if func is aten.pow.Tensor_Scalar and args[1] == int(args[1]):
            operation = func  # powers of whole numbers round alike
        return operation(*args, **(kwargs or {}))


def is_invariance_mode(mode: object) -> bool:
    """Return whether a dispatch mode is that of `batch_invariant()`."""
    return isinstance(mode, _BatchInvariant)


def is_batch_invariant() -> bool:
    """Return whether this thread has entered `batch_invariant()`."""
    if torch.compiler.is_compiling():
        return False
    # Torch keeps the modes of each thread apart; a flag of the process would be left early by another thread.
    return any(map(is_invariance_mode, _get_current_dispatch_mode_stack()))


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Compute in this thread so that no sample's result depends on its batch; entering twice is entering once.

    >>> x, weight = torch.randn(9, 5), torch.randn(5, 3)
    >>> with batch_invariant():
    ...     torch.equal((x @ weight)[4:5], x[4:5] @ weight)
    True
    """
    if is_batch_invariant():
        yield
        return
    with _BatchInvariant():
        yield
