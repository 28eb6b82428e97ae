import contextlib
import importlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import torch

from ncode_gen.command import run_command

# Two processes share the cores; threads that outnumber these only get into each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
TINY = [
    *("--training.epochs", "2", "--training.batch", "256", "--encoder.width", "8", "--decoder.width", "8"),
    *("--encoder.features", "16", "--latent.dim", "3", "--flow.hidden", "8", "--flow.steps", "2"),
]


@dataclass
class Done:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str


class Command(Protocol):
    """Runs a command of the package in a folder; returns how it ended and what it printed."""

    def __call__(self, name: str, *arguments: object, cwd: Path) -> Done: ...


@pytest.fixture(scope="session")
def command() -> Command:
    """Run a command of the package in a folder, in this process for speed; returns how it ended and what it said."""

    def run(name: str, *arguments: object, cwd: Path) -> Done:
        out, err, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
        main = importlib.import_module(f"ncode_gen.{name}").main
        sys.argv = [f"{name}.py", *map(str, arguments)]
        try:
            with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                run_command(main)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        finally:
            sys.argv = before
        return Done(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A small model of the digits, trained by the command."""
    folder = tmp_path_factory.mktemp("trained")
    done = command("train", *TINY, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
