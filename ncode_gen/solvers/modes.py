"""Which mode of torch a solve runs in: plain, compiled, traced, with fake tensors, or under automatic casting."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.jit._trace import is_tracing
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .invariance import is_invariance_mode

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
WITHOUT_NUMBERS = (FakeTensorMode, ProxyTorchDispatchMode, FunctionalTensorMode)


def is_plain(*tensors: Tensor) -> bool:
    """Return whether operations on these tensors run at once, are not traced, and have numbers.

    False inside `torch.jit.trace`, `torch.export`, under any dispatch mode but `batch_invariant` (such as that of
    `make_fx`, fake tensors and counters of operations), for subclasses of tensors and on the meta device. Code that
    reads memory by itself must be left aside there: its result would become a constant, or there is no memory.
    """
    if is_tracing():
        return False
    if any(type(tensor) not in PLAIN or tensor.is_meta for tensor in tensors):
        return False
    return all(is_invariance_mode(mode) for mode in _get_current_dispatch_mode_stack())


def sees_numbers(tensor: Tensor) -> bool:
    """Return whether a decision by the numbers of a tensor is possible and stays right when the code runs again.

    >>> sees_numbers(torch.ones(2)), sees_numbers(torch.ones(2, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling() or is_tracing():
        return False
    if tensor.is_meta or isinstance(tensor, FakeTensor) or torch._C._functorch.is_batchedtensor(tensor):
        return False
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return not any(isinstance(mode, WITHOUT_NUMBERS) for mode in _get_current_dispatch_mode_stack())


def in_own_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without automatic casting: a solver's arithmetic is that of the state's dtype."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def casting_to(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that automatic casting takes where a tensor is; None where it is off."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None
