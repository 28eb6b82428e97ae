"""Work on the parts of a batch: one after another, or, on a CPU, each core on its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CACHED = 64


@torch.no_grad()
def in_parts(function: Callable[..., Tensor], *rows: Tensor, batch: int) -> Tensor:
    """Return what a function makes of rows, `batch` of them at a time, without gradients.

    On a CPU a part has at most 64 rows, so that feature maps stay in its cache, and each core takes parts of its own:
    sharing out every single operation leaves the cores waiting for each other.

    Args:
        function: maps parts of all `rows` to a tensor with as many rows.
        *rows: tensors (n, ...) on one device.
        batch: rows of a part, at least 1.

    >>> in_parts(torch.add, torch.arange(5), torch.ones(5, dtype=torch.int64), batch=2)
    tensor([1, 2, 3, 4, 5])
    """
    on_cpu = rows[0].device.type == "cpu"
    parts = list(zip(*(tensor.split(min(batch, CACHED) if on_cpu else batch) for tensor in rows), strict=True))
    cores = torch.get_num_threads()
    # Only OpenMP counts the threads of an operation for each thread that asks.
    if not on_cpu or min(cores, len(parts)) == 1 or not torch.backends.openmp.is_available():
        return torch.cat([function(*part) for part in parts])

    def alone(part: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():  # which holds for one thread
            return function(*part)

    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(alone, parts)))
    finally:
        torch.set_num_threads(cores)  # also what threads to come start with
