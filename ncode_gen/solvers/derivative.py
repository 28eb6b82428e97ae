"""What a solver is given: the state and its derivative, checked before they can make a wrong number."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from .fixed import Derivative, State


@runtime_checkable
class Selectable(Protocol):
    """A derivative that can be restricted to some of its samples."""

    def __call__(self, t: Tensor, state: State) -> State:
        """Return the rates of a state."""

    def select(self, rows: Tensor) -> Selectable:
        """Return the derivative of the samples `rows`, an index or a mask."""


def check_state(state: object) -> State:
    """Return the state as a tuple of tensors (n, ...).

    Raises:
        ValueError: no tuple of real floating-point tensors, or tensors of unlike numbers of samples.

    >>> import torch
    >>> check_state(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: the state must be a tuple of tensors, got a tensor of shape (3,); write (x,) for one part
    """
    if not isinstance(state, tuple | list) or not state or not all(isinstance(part, Tensor) for part in state):
        raise ValueError(f"the state must be a tuple of tensors, got {_described(state)}; write (x,) for one part")
    parts: State = tuple(state)
    for part in parts:
        if part.is_complex():
            raise ValueError("a state must be real, got a complex one; give torch.view_as_real(state)")
        if not part.is_floating_point():
            raise ValueError(f"a state must be floating point, got {part.dtype}; give state.float()")
        if part.dim() == 0 or part.shape[0] != parts[0].shape[0]:
            shapes = ", ".join(str(tuple(other.shape)) for other in parts)
            raise ValueError(f"all parts of a state must have shape (n, ...) with the same n, got {shapes}")
    return parts


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} parts: {', '.join(map(_described, value))}"
    return type(value).__name__


def _checked_rates(rates: Any, state: State) -> State:
    if type(rates) not in (tuple, list) or len(rates) != len(state):
        raise ValueError(
            f"the derivative must return a tuple of {len(state)} tensors, one for each part of the state, got "
            f"{_described(rates)}{'; write (rate,)' if isinstance(rates, Tensor) and len(state) == 1 else ''}"
        )
    found = []
    for rate, part in zip(rates, state, strict=True):
        if not isinstance(rate, Tensor) or rate.shape != part.shape or rate.is_complex():
            raise ValueError(
                f"the derivative must return real tensors of the state's shape {tuple(part.shape)}, got "
                f"{'a complex one' if isinstance(rate, Tensor) and rate.is_complex() else _described(rate)}"
            )
        # Half precision of a layer must not become that of the state, nor float64 of a time that of all.
        found.append(rate if rate.dtype == part.dtype else rate.to(part.dtype))
    return tuple(found)


class _Checked:
    """A derivative whose rates are checked against the state, and have its dtypes."""

    def __init__(self, derivative: Derivative) -> None:
        self.derivative = derivative
        self.initial: State | None = getattr(derivative, "initial", None)

    def __call__(self, t: Tensor, state: State) -> State:
        return _checked_rates(self.derivative(t, state), state)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on."""
        found: tuple[Tensor, ...] = cast(Any, self.derivative).tensors()
        return found


class _CheckedSelectable(_Checked):
    def select(self, rows: Tensor) -> _CheckedSelectable:
        """Return the derivative of some of the samples."""
        return _CheckedSelectable(cast(Selectable, self.derivative).select(rows))


def checked(derivative: Derivative) -> Derivative:
    """Return a derivative that says what is wrong with what it returns, and keeps the dtype of the state.

    Raises:
        ValueError: when it is called, and what it returns is no tuple of tensors of the state's shapes.

    >>> import torch
    >>> checked(lambda t, state: state)(torch.tensor(0.0), (torch.zeros(3),))
    (tensor([0., 0., 0.]),)
    """
    if not callable(derivative):
        raise ValueError(f"the derivative must be a function of a time and a state, got {_described(derivative)}")
    return _CheckedSelectable(derivative) if isinstance(derivative, Selectable) else _Checked(derivative)
