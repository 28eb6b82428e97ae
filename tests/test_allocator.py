"""Freed memory is kept for the next operation, where the C library can be set so."""

import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from ncode_gen.runtime.allocator import SWITCH

# Pages that a process is given anew while it makes and drops maps of 8 MB. Whether glibc gives these back by itself
# differs from process to process, by what lies above them; set by M_MMAP_THRESHOLD, it always does.
COUNT = """
import ctypes, resource, torch
from ncode_gen.runtime.allocator import keep_freed_memory
tell = getattr(ctypes.CDLL(None), "mallopt", None)
if tell is not None:
    tell(-3, 128 << 10)
printed = keep_freed_memory()
def work():
    for _ in range(20):
        maps = torch.ones(2 << 20)
        more = maps + maps
        del maps, more
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(printed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2 * 20 * (8 << 20) // 4096
GLIBC = platform.libc_ver()[0] == "glibc"


def run(**environment: str) -> tuple[bool, int]:
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", SWITCH))}
    asked = subprocess.run(
        [sys.executable, "-c", COUNT], env=theirs | environment, capture_output=True, text=True, check=True
    )
    printed, pages = asked.stdout.split()
    return printed == "True", int(pages)


def test_memory_that_was_freed_is_used_again() -> None:
    printed, pages = run()
    assert printed == GLIBC
    if printed:
        assert pages < PAGES / 20 and run(**{SWITCH: "0"})[1] > PAGES / 2


@pytest.mark.parametrize("name, value", [(SWITCH, "0"), ("MALLOC_TRIM_THRESHOLD_", "131072")])
def test_users_who_want_something_else_get_it(name: Any, value: str) -> None:
    assert not run(**{name: value})[0]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ncode_gen.runtime import allocator

    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
