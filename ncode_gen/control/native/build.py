"""C++ compiled for this machine at first use, and kept: one second once, nothing after that."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from ...runtime.paths import cache_folder

# Not -ffast-math: it would change how the whole process rounds denormal numbers, and lose NaNs.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SWITCH = "NCODE_GEN_NATIVE"


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """Return a library compiled from `name`.cpp beside this file; None where that is impossible, said once.

    The environment variable NCODE_GEN_NATIVE=0 switches it off; CXX names the compiler.
    """
    if os.environ.get(SWITCH) == "0" or sys.platform == "win32":
        return None
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return None  # the same machine has no compiler for torch.compile either, which says so
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        return ctypes.CDLL(str(_built(compiler, source)))
    except Exception as error:  # an unknown machine may refuse any of this, and nothing of it is needed
        output = getattr(error, "stderr", None) or str(error) or type(error).__name__
        warnings.warn(
            f"{source.name} could not be compiled by {compiler} ({output.strip().splitlines()[0]}); flows are solved "
            f"without it; {SWITCH}=0 silences this",
            stacklevel=2,
        )
        return None


def _built(compiler: str, source: Path) -> Path:
    command = [*shlex.split(compiler), *FLAGS, *(() if sys.platform == "darwin" else ("-fopenmp",))]
    # One home folder can serve unlike machines, so what -march=native means is a part of the name.
    identity = "\n".join([source.read_text(), *command, _version(command[0]), _processor()])
    folder = cache_folder()
    target = folder / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    digest = target.with_suffix(".sha256")
    if not _whole(target, digest):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made, written = Path(scratch) / target.name, Path(scratch) / digest.name
            arguments = [*command, str(source), "-o", str(made)]
            subprocess.run(arguments, check=True, capture_output=True, text=True, errors="replace", timeout=300)
            written.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            # A process that reads between the two moves finds them unlike, and compiles for itself.
            made.replace(target)
            written.replace(digest)
    return target


def _whole(library: Path, digest: Path) -> bool:
    """Return whether a library is there as it was compiled: one that is cut short would end the process."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == digest.read_text()
    except (OSError, ValueError):
        return False


def _version(compiler: str) -> str:
    command = [compiler, "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=60).stdout


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()}"
