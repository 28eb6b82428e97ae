"""Seeds of any size."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["folded", "seeded"]

LIMIT = 2**63


def folded(seed: int, limit: int = LIMIT) -> int:
    """Return a seed in [0, limit): itself if it is one, else a number that depends on all of its digits.

    >>> folded(7), folded(-1) == folded(-1), 0 <= folded(2**70) < 2**63
    (7, True, True)
    """
    if 0 <= seed < limit:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()) % limit


def seeded(seed: int) -> torch.Generator:
    """Return random numbers, on the CPU, for any whole number: time stamps in nanoseconds, negative numbers, ...

    >>> torch.equal(torch.rand(2, generator=seeded(2**64)), torch.rand(2, generator=seeded(2**64)))
    True
    """
    return torch.Generator().manual_seed(folded(seed))
