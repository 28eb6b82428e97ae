"""Which start of a flow belongs to which end: the pairs that flow matching learns from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .mixture import GaussianMixture

__all__ = ["coupled_batches"]

BLOCK = 256  # pairs matched at a time; the time of a match grows with the square and more
REUSE = 4  # passes over the same pairs, each at times of its own


def coupled_batches(
    base: GaussianMixture, ends: Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of starts and ends, each (size, d), for ever.

    Each end is given one of the base's Gaussians by its responsibilities, and a start from that Gaussian; the starts
    and ends of a Gaussian are then matched, some hundreds at a time, so that their squared distances are least. Starts
    stay distributed as the base and ends as the points, but a path never leads from one Gaussian to another, and is
    shorter than one within a batch of all.

    Sources: Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
    TMLR 2024, which matches within a batch.

    Args:
        base: a fitted mixture.
        ends: points (n, d) that it was fitted to, on the CPU.
        size: pairs of a batch, at most n.
        generator: random numbers, on the CPU.
    """
    joint = base.gaussians.joint_log_prob(ends.to(base.means.device)).cpu()
    below = joint.softmax(1).cumsum(1)
    while True:
        starts, matched = _pairs(base, ends, below, generator)
        for _ in range(REUSE):
            order = torch.randperm(len(ends), generator=generator)
            for rows in order[: len(order) // size * size].split(size):
                yield starts[rows], matched[rows]


def _pairs(base: GaussianMixture, ends: Tensor, below: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a start for every end, and the ends in the order of the starts."""
    from scipy.optimize import linear_sum_assignment

    level = torch.rand(len(ends), 1, generator=generator)
    chosen = torch.searchsorted(below, level).squeeze(1).clamp_max(base.components - 1)
    order = torch.randperm(len(ends), generator=generator)
    order = order[chosen[order].argsort(stable=True)]
    starts, matched = base.draw(chosen[order], generator).cpu(), ends[order]
    for group in torch.arange(len(ends)).split(chosen.bincount(minlength=base.components).tolist()):
        for rows in group.split(BLOCK):
            if len(rows) > 1:
                distance = torch.cdist(starts[rows], matched[rows]).square()
                matched[rows] = matched[rows][linear_sum_assignment(distance.numpy())[1]]
    return starts, matched
