"""Which start of a flow belongs to which end: the pairs that flow matching learns from."""

import torch
from torch import Tensor

from ...runtime.seeding import seeded
from .mixture import GaussianMixture

BLOCK = 256  # pairs matched at a time; the time of a match grows with the square and more
REUSE = 4  # passes over the same pairs, each at times of its own


class CoupledPairs:
    """Batches of starts and ends, each (size, d), by the number of the batch.

    Each end is given one of the base's Gaussians by its responsibilities, and a start from that Gaussian; the starts
    and ends of a Gaussian are then matched, some hundreds at a time, so that their squared distances are least. Starts
    stay distributed as the base and ends as the points, but a path never leads from one Gaussian to another, and is
    shorter than one within a batch of all. A batch depends on seed and number alone.

    Sources: Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
    TMLR 2024, which matches within a batch.

    Args:
        base: a fitted mixture.
        ends: points (n, d) that it was fitted to, on the CPU.
        size: pairs of a batch, at most n.
        seed: seed of starts, matches and order.
    """

    def __init__(self, base: GaussianMixture, ends: Tensor, size: int, seed: int) -> None:
        self.base, self.ends, self.size, self.seed = base, ends, size, seed
        joint = base.gaussians.joint_log_prob(ends.to(base.means.device)).cpu()
        self.below = joint.softmax(1).cumsum(1)
        self._made: tuple[int, Tensor, Tensor] | None = None
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the starts and ends of a batch."""
        batches = len(self.ends) // self.size
        passes, place = divmod(number, batches)
        if self._made is None or self._made[0] != passes // REUSE:
            self._made = (passes // REUSE, *self._matched(self._numbers(0, passes // REUSE)))
        if self._order is None or self._order[0] != passes:
            self._order = (passes, torch.randperm(len(self.ends), generator=self._numbers(1, passes)))
        rows = self._order[1][place * self.size : (place + 1) * self.size]
        return self._made[1][rows], self._made[2][rows]

    def _numbers(self, purpose: int, number: int) -> torch.Generator:
        return seeded((1_000_003 * self.seed + number) * 2 + purpose)

    def _matched(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a start for every end, and the ends in the order of the starts."""
        from scipy.optimize import linear_sum_assignment

        base, ends = self.base, self.ends
        level = torch.rand(len(ends), 1, generator=generator)
        chosen = torch.searchsorted(self.below, level).squeeze(1).clamp_max(base.components - 1)
        order = torch.randperm(len(ends), generator=generator)
        order = order[chosen[order].argsort(stable=True)]
        starts, matched = base.sample_components(chosen[order], generator).cpu(), ends[order]
        for group in torch.arange(len(ends)).split(chosen.bincount(minlength=base.components).tolist()):
            for rows in group.split(BLOCK):
                if len(rows) > 1:
                    distance = torch.cdist(starts[rows], matched[rows]).square()
                    matched[rows] = matched[rows][linear_sum_assignment(distance.numpy())[1]]
        return starts, matched
