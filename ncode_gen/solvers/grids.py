"""The nodes of a fixed-step solve: even, at random, or given."""

import operator
from itertools import pairwise

import torch
from torch import Tensor

from .times import Times, as_times


def random_grid(steps: int, *, generator: torch.Generator | None = None, jitter: float = 1.0) -> Tensor:
    """Draw a grid of `steps` steps on [0, 1] whose inner nodes are moved at random.

    Each inner node is uniform within `jitter` times half a step of its even place, so the order is kept.
    Training on such grids keeps a flow from fitting the error of one fixed grid.

    Args:
        steps: number of steps, at least 1.
        generator: random numbers, on the CPU.
        jitter: from 0, an even grid, to 1.

    Returns:
        Times, shape (steps + 1,), from 0 to 1.

    Raises:
        ValueError: a number of steps below 1, or another jitter.

    >>> random_grid(4, jitter=0.0).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    steps = as_count(steps, "steps")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be from 0 to 1, or nodes would lose their order, got {jitter}")
    grid = torch.linspace(0.0, 1.0, steps + 1)
    noise = torch.rand(max(steps - 1, 0), generator=generator) - 0.5
    grid[1:-1] += jitter * noise / steps
    return grid


def nodes_of(times: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """Spread about `steps` steps over the requested times, at least one in each gap; the nodes follow the times.

    Returns:
        Times of the grid, shape (S + 1,), and the places of the requested times in it.

    >>> nodes_of(torch.tensor([0.0, 0.5, 1.0]), 2)
    (tensor([0.0000, 0.5000, 1.0000]), [0, 1, 2])
    """
    if times.shape[0] == 2:  # without a look at the numbers, so that the compiler takes it whole
        fractions = torch.arange(steps, dtype=times.dtype, device=times.device) / steps
        return torch.cat([times[0] + (times[1] - times[0]) * fractions, times[1:]]), [0, steps]
    gaps = times.detach().diff().abs()
    shares = [max(1, round(share)) for share in (steps * gaps / gaps.sum()).tolist()]
    nodes, kept = [], [0]
    for (start, end), share in zip(pairwise(times), shares, strict=True):
        fractions = torch.arange(share, dtype=times.dtype, device=times.device) / share
        nodes.append(start + (end - start) * fractions)
        kept.append(kept[-1] + share)
    return torch.cat([*nodes, times[-1:]]), kept


def grid_of(times: Times, state: Tensor, steps: int, grid: Times | None) -> tuple[Tensor, Tensor, list[int]]:
    """Return the requested times, the nodes of a fixed-step solve, and the places of the times among the nodes.

    Args:
        times: requested times.
        state: a part of the state, which gives device and dtype.
        steps: steps on the whole interval.
        grid: the nodes themselves, whose ends are then the requested times.

    Raises:
        ValueError: see `as_times`.
    """
    if grid is None:
        wanted = as_times(times, state, steps=steps)
        return wanted, *nodes_of(wanted, steps)
    nodes = as_times(grid, state, name="grid")
    return torch.stack([nodes[0], nodes[-1]]), nodes, [0, nodes.shape[0] - 1]


def as_count(value: int, name: str) -> int:
    """Return a whole number of at least 1, or raise a ValueError that names it."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count
