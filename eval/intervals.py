"""Intervals of means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

__all__ = ["interval"]


def interval(rows: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    """Return the mean of a score over the seeds and the half-width of its 95 % interval (Student's t)."""
    values = np.array([row[key] for row in rows])
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
