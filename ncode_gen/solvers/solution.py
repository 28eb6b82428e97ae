"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Solution"]


@dataclass(frozen=True)
class Solution:
    """The path of an ordinary differential equation at the requested times.

    Attributes:
        times: requested times, shape (T,), the initial time first.
        parts: the components of the ODE state, each of shape (T, n, ...).
        nfe: number of evaluations of the derivative.
        accepted: number of steps taken.
        rejected: number of steps tried and thrown away (0 for fixed steps).
    """

    times: Tensor
    parts: tuple[Tensor, ...]
    nfe: int
    accepted: int
    rejected: int

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
    def status(self) -> str:
        """One sentence on how the solve ended; it starts with "ok" when every sample is finite."""
        lost = int((~self.finite).sum())
        if lost == 0:
            return f"ok: {self.accepted} steps, {self.nfe} evaluations"
        return f"non-finite: {lost} of {len(self.finite)} samples left the finite numbers"
