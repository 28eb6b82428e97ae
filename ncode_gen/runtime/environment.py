"""Versions, device, commit and command: what makes a result one that can be made again."""

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def describe_environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Return versions, device, commit and seed: what environment.json holds; None for what cannot be found out."""
    packages = ("torch", "torchvision", "torchdiffeq", "numpy", "scipy", "scikit-learn")
    return {
        "ncode_gen": _version("ncode_gen"),
        "commit": _own_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "command": _command(),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a package that was put there without an installer
        return None


def _device_name(device: torch.device) -> str:
    try:
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    except (RuntimeError, AssertionError):
        return device.type


def _command() -> str:
    said = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with contextlib.suppress(OSError):  # the folder may have been removed
        said = said.replace(f"{Path.cwd()}{os.sep}", "")
    return said


def _own_commit() -> str | None:
    """Return the commit of this package's own repository; None where it is installed, wherever that lies."""
    source = Path(__file__).parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, errors="replace")
        return done.stdout.strip()

    try:
        # Inside somebody else's repository, such as in an environment kept there, this file is none of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != source.parent.resolve():
            return None
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
