"""The times of a solve: every form that users give, checked and converted in one place for all methods."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .modes import sees_numbers

Times = Tensor | np.ndarray[Any, Any] | Sequence[Any]
FORMS = "a tensor, an array or a list of at least two finite numbers, strictly increasing or strictly decreasing"
# How many numbers of a dtype must lie in the whole interval, and in a step or between two times.
LEAST_SPACINGS, SPACINGS_A_STEP = 1024, 16
CONVERSION_ERROR = 1e-6  # relative error of a gap that a conversion may make


def as_times(times: Times, state: Tensor, *, steps: int = 1, name: str = "times") -> Tensor:
    """Return times as a floating-point tensor (T,) on the state's device, or say what is wrong with them.

    The dtype is that of the state (float32 for half precision), or float64 where the state's cannot resolve the
    times, such as time stamps. Gradients pass through the conversion. Where numbers cannot be looked at (compiled,
    traced), the form alone is checked.

    Args:
        times: a tensor, an array or a list (of numbers or of scalar tensors) of at least two numbers.
        state: the state that is solved for; it gives device and dtype.
        steps: steps on the whole interval, which the dtype has to resolve.
        name: what the times are called in messages.

    Raises:
        ValueError: no row of at least two numbers, a number that is NaN or infinite, times that are not strictly
            increasing or decreasing, or so close together that no dtype of the device can resolve the steps.

    >>> as_times([0, 1, 3], torch.zeros(1))
    tensor([0., 1., 3.])
    >>> as_times([1.7e9, 1.7e9 + 1], torch.zeros(1)).dtype
    torch.float64
    """
    given = _as_tensor(times, name)
    if given.dim() != 1 or given.shape[0] < 2:
        raise ValueError(f"{name} must be one row of at least two numbers, got shape {tuple(given.shape)}")
    if given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name} must be {FORMS}, got {given.dtype}")
    own = torch.float64 if state.dtype == torch.float64 else torch.float32
    if sees_numbers(given):
        own = _checked_dtype(given.detach().tolist(), given.dtype, own, steps, name)
    elif given.dtype == torch.float64:
        own = torch.float64
    if own == torch.float64 and state.device.type == "mps":
        raise ValueError(f"{name} need float64, which {state.device} does not have; measure them from the first one")
    return given if given.dtype == own and given.device == state.device else given.to(state.device, own)


def _as_tensor(times: Times, name: str) -> Tensor:
    if isinstance(times, Tensor):
        return times
    try:
        if isinstance(times, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(times))
        values = list(times)
        if any(isinstance(value, Tensor) for value in values):  # a plain conversion would lose their gradients
            return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])
        if any(isinstance(value, bool) for value in values):
            raise TypeError("truth values are no times")
        whole = all(isinstance(value, int) for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} must be {FORMS}, got {times!r:.100}") from None


def _checked_dtype(values: list[float], held: torch.dtype, own: torch.dtype, steps: int, name: str) -> torch.dtype:
    """Return the dtype in which times are kept, of `own` and float64, after a look at their numbers."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be finite, got {_shown(values)}")
    gaps = [later - earlier for earlier, later in pairwise(values)]
    if not (min(gaps) > 0 or max(gaps) < 0):
        raise ValueError(f"{name} must be strictly increasing or strictly decreasing, got {_shown(values)}")
    for dtype in dict.fromkeys((own, torch.float64)):
        if _resolves(dtype, values, gaps, held, steps):
            return dtype
    raise ValueError(
        f"{name} are too close together for float64, got {_shown(values)}; measure them from the first one"
    )


def _resolves(dtype: torch.dtype, values: list[float], gaps: list[float], held: torch.dtype, steps: int) -> bool:
    """Return whether a dtype holds the gaps between times that are held in another, and the steps in these gaps."""
    largest, span = max(map(abs, values)), abs(values[-1] - values[0])
    spacing = torch.finfo(dtype).eps * largest
    least = min(map(abs, gaps))
    if span < LEAST_SPACINGS * spacing or min(least, span / steps) < SPACINGS_A_STEP * spacing:
        return False
    if held == dtype:
        return True
    if largest > torch.finfo(dtype).max:
        return False
    kept = [float(np.float32(value)) if dtype == torch.float32 else float(value) for value in values]
    return all(
        abs((later - earlier) - gap) <= CONVERSION_ERROR * abs(gap)
        for (earlier, later), gap in zip(pairwise(kept), gaps, strict=True)
    )


def _shown(values: list[float]) -> str:
    return f"[{', '.join(f'{value:.17g}' for value in values[:8])}{', ...' if len(values) > 8 else ''}]"


class _Shift(torch.autograd.Function):
    """The identity in a state, whose derivative in a time is the given rate of change.

    A second derivative would need the rate's own derivatives, which are not kept, so it is refused.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, state: Tensor, time: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(rate)
        ctx.time = time  # type: ignore[attr-defined]
        return state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (rate,) = ctx.saved_tensors
        return gradient, (gradient * rate).sum().to(ctx.time.dtype).reshape(ctx.time.shape), None


def attach_times(state: Tensor, time: Tensor, rate: Tensor) -> Tensor:
    """Return a state as it is, whose gradient in a time is a given rate: dx(t)/dt = f(t, x), dx(t)/dt0 by -f(t0, x0).

    Args:
        state: the state at a time.
        time: the time, a scalar that may require gradients.
        rate: the derivative of the state in the time, of its shape; a constant.
    """
    attached: Tensor = _Shift.apply(state, time, rate.detach())
    return attached
