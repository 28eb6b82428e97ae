"""Random numbers: seeds of any size, and the state of the global generators."""

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

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


def random_states() -> dict[str, Any]:
    """Return the states of the global random generators of torch, CUDA, numpy and Python."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the global random generators as `random_states` found them."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Leave the global random generators as they were before, whatever is seeded and drawn inside."""
    before = random_states()
    try:
        yield
    finally:
        restore_random_states(before)
