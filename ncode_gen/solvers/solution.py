"""What a solve returns."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Outcome(IntEnum):
    """How the solve of one sample ended."""

    REACHED = 0
    STEP_CAP = 1
    NON_FINITE = 2
    STEP_TOO_SMALL = 3

    @property
    def words(self) -> str:
        """What happened, in words.

        >>> Outcome.STEP_CAP.words
        'stopped at the step cap'
        """
        return _WORDS[self]


_WORDS = {
    Outcome.REACHED: "reached the last time",
    Outcome.STEP_CAP: "stopped at the step cap",
    Outcome.NON_FINITE: "left the finite numbers",
    Outcome.STEP_TOO_SMALL: "needs steps below the resolution of time",
}


@dataclass(frozen=True)
class SampleCounts:
    """What each sample of a per-sample adaptive solve took, int64 tensors of shape (n,).

    Where gradients are needed, the accepted steps are taken once more under autograd; that is not counted.

    Attributes:
        nfe: evaluations of the derivative.
        accepted: steps taken.
        rejected: steps tried and thrown away.
    """

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Solution:
    """The path of an ordinary differential equation at the requested times.

    Attributes:
        times: requested times, shape (T,), the initial time first.
        parts: the components of the ODE state, each of shape (T, n, ...). Where a per-sample adaptive solve did not
            reach a time, the last state that it reached.
        nfe: number of evaluations of the derivative; the largest over the samples, if they differ.
        accepted: number of steps taken; the largest over the samples, if they differ.
        rejected: number of steps tried and thrown away (0 for fixed steps); the largest over the samples.
        outcomes: an `Outcome` for each sample, shape (n,), int8, of a per-sample adaptive solve; else None.
        counts: evaluations and steps of each sample of a per-sample adaptive solve; else None.
    """

    times: Tensor
    parts: tuple[Tensor, ...]
    nfe: int
    accepted: int
    rejected: int
    outcomes: Tensor | None = None
    counts: SampleCounts | None = None

    @property
    def states(self) -> Tensor:
        """The first component at every requested time, shape (T, n, ...)."""
        return self.parts[0]

    @property
    def state(self) -> Tensor:
        """The first component at the last time, shape (n, ...)."""
        return self.parts[0][-1]

    @property
    def finite(self) -> Tensor:
        """Which samples stayed finite in every component, shape (n,), bool."""
        flags = [torch.isfinite(part).movedim(1, 0).flatten(1).all(1) for part in self.parts]
        return torch.stack(flags).all(0)

    @property
    def reached(self) -> Tensor:
        """Which samples reached the last time in finite numbers, shape (n,), bool."""
        return self.finite if self.outcomes is None else self.outcomes == Outcome.REACHED

    @property
    def status(self) -> str:
        """How the solve ended; it starts with "ok" when every sample reached the last time.

        The words of one sample are `Outcome(int(solution.outcomes[i])).words`.
        """
        if self.outcomes is None:
            lost = {Outcome.NON_FINITE: int((~self.finite).sum())}
            total = self.parts[0].shape[1]
        else:
            lost = {how: int((self.outcomes == how).sum()) for how in Outcome if how is not Outcome.REACHED}
            total = self.outcomes.numel()
        words = [f"{count} {how.words}" for how, count in lost.items() if count]
        if not words:
            return f"ok: {self.accepted} steps, {self.nfe} evaluations"
        return f"incomplete: of {total} samples, {', '.join(words)}"
