"""What a flow is given: states and conditions of the right shape, and of the dtype of the weights."""

import torch
from torch import Tensor, nn


def weights_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the dtype of a module's first weight; the default where it has none."""
    first = next(module.parameters(), None)
    return default if first is None else first.dtype


def uncast(given: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor that automatic casting made half precision in another dtype; others as they are."""
    return given.to(dtype) if given.dtype in (torch.float16, torch.bfloat16) else given


def checked_inputs(
    x: Tensor, condition: Tensor | None, axes: int, dim: int, *, conditional: bool
) -> tuple[Tensor, Tensor]:
    """Return states (n, K, *event) and a condition (n, c).

    Args:
        x: states (n, *event) or (n, K, *event).
        condition: (n, c); the states themselves if None.
        axes: dimensions of an event.
        dim: size of the first of them.
        conditional: whether the control is made from the condition.

    Raises:
        ValueError: a wrong shape; the message names it.
    """
    if x.dim() not in (axes + 1, axes + 2) or x.shape[-axes] != dim:
        event = f"{dim}" if axes == 1 else f"{dim}, H, W"
        raise ValueError(f"states must have shape (n, {event}) or (n, K, {event}), got {tuple(x.shape)}")
    if condition is None:
        if x.dim() == axes + 2 and conditional:
            raise ValueError("with K states a sample, give a condition of shape (n, c)")
        condition = x.flatten(1)
    elif condition.dim() != 2 or condition.shape[0] != x.shape[0]:
        raise ValueError(f"the condition must have shape ({x.shape[0]}, c), got {tuple(condition.shape)}")
    return x if x.dim() == axes + 2 else x.unsqueeze(1), condition


def check_dtypes(own: torch.dtype, **given: Tensor) -> None:
    """Raise a ValueError where a tensor, by its name, has another dtype than the weights."""
    for name, value in given.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} must be real floating point, got {value.dtype}")
        if value.dtype != own:
            raise ValueError(
                f"the {name} are {value.dtype}, the weights of the flow {own}; convert one of them, such as "
                f"{name}.to({own}) or flow.to({value.dtype})"
            )
