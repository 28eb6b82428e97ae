import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    *("--training.epochs", "2", "--training.batch", "256", "--encoder.width", "8", "--decoder.width", "8"),
    *("--encoder.features", "16", "--latent.dim", "3", "--flow.hidden", "8", "--flow.steps", "2"),
]


@pytest.fixture(scope="session")
def command():
    """Run a command of the package as a user would, in a folder; returns the finished process."""

    def run(name, *arguments, cwd, timeout=300):
        return subprocess.run(
            [sys.executable, "-m", f"ncode_gen.{name}", *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, command):
    """A small model of the digits, trained by the command."""
    folder = tmp_path_factory.mktemp("trained")
    done = command("train", *TINY, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
