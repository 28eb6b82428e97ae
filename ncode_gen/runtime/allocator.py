"""The C library's memory: kept for the next operation instead of given back after each."""

import ctypes
import os
import sys

SWITCH = "NCODE_GEN_KEEP_MEMORY"
# Of malloc.h: at how many free bytes memory is given back, and from what size on a request has pages of its own.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, OWN_PAGES = 1 << 30, 32 << 20  # the most that every version of glibc takes for the second


def keep_freed_memory() -> bool:
    """Tell glibc to keep up to 1 GiB of freed memory for this process; elsewhere, change nothing.

    Feature maps of some MB come and go with every operation on a CPU. By default glibc gives such memory back to the
    system and asks for it again, and the system clears each page again. A process that keeps it has no larger peak, but
    stays nearer to its peak. This is a decision about a whole process, so that commands take it and a library must not.

    The environment variable NCODE_GEN_KEEP_MEMORY=0 switches it off; so do glibc's own, MALLOC_TRIM_THRESHOLD_,
    MALLOC_MMAP_THRESHOLD_ and GLIBC_TUNABLES, which say what a user wants instead.

    Returns:
        Whether it does so now.
    """
    theirs = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or os.environ.get(SWITCH) == "0" or any(name in os.environ for name in theirs):
        return False
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    except (OSError, TypeError):  # a program that is linked as one piece
        return False
    return mallopt is not None and bool(mallopt(M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(M_MMAP_THRESHOLD, OWN_PAGES))
