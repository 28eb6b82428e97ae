"""A value with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.seeding import seeded

NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A score and the ends of its 95 % interval: value -+ 1.96 standard errors, or, for a share, Wilson's.

    Attributes:
        value: the score.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def defined(self) -> bool:
        """Whether it is a number, as the mean of no cases or a ratio to nothing is not."""
        return math.isfinite(self.value) and math.isfinite(self.low) and math.isfinite(self.high)

    @classmethod
    def from_error(cls, value: float, error: float) -> Score:
        """Return the score with a given standard error."""
        return cls(value, value - NORMAL_95 * error, value + NORMAL_95 * error)

    @classmethod
    def of_share(cls, share: float, n: int) -> Score:
        """Return the share of `n` independent cases, n >= 1, with an interval that stays within [0, 1].

        Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

        >>> score = Score.of_share(1.0, 10)
        >>> round(score.low, 3), score.high
        (0.722, 1.0)
        """
        from scipy.stats import binomtest  # half a second, for scores alone

        interval = binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
        # It always holds the share and stays within [0, 1], but for rounding.
        low, high = float(interval.low), float(interval.high)
        return cls(share, max(min(low, share), 0.0), min(max(high, share), 1.0))


def mean_score(values: Tensor) -> Score:
    """Return the mean of independent values (n,), with the standard error of a mean.

    >>> mean_score(torch.tensor([1.0, 1.0, 1.0])).value
    1.0
    """
    held = values.double()
    error = float(held.std()) / math.sqrt(len(held)) if len(held) > 1 else 0.0
    return Score.from_error(float(held.mean()), error)


def bootstrap_score(value: float, resampled: Callable[[torch.Generator], float], replicates: int, seed: int) -> Score:
    """Return a score with the standard deviation of its bootstrap replicates as its standard error.

    The interval stands around the value itself, since resampling shifts the Frechet distance upwards.

    Args:
        value: the score on all data.
        resampled: computes the score on data resampled with replacement, given random numbers.
        replicates: number of resamples.
        seed: seed of the resamples.
    """
    generator = seeded(seed)
    values = torch.tensor([resampled(generator) for _ in range(replicates)], dtype=torch.float64)
    return Score.from_error(value, float(values.std()) if replicates > 1 else 0.0)
