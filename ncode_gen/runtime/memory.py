"""How much memory there is, and whether an error says that there was too little."""

import os
from pathlib import Path

import torch

LIMIT_OF_THE_GROUP = Path("/sys/fs/cgroup/memory.max")


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of a device's memory, or what of it this process may have; None if it cannot be found out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(here, int(LIMIT_OF_THE_GROUP.read_text()))
    except (OSError, ValueError):
        return here


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
