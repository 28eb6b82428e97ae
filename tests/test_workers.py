"""Two processes on the CPU do what one does: same losses, same weights, same scores."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ncode_gen.runfolder.state import load_state

from .conftest import TINY, Command

WORKER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from ncode_gen.training import step as step_module
from ncode_gen.command import run_command

losses, real = [], step_module.Step.__call__
def watched(self, *inputs):
    found = real(self, *inputs)
    losses.append(found.tolist())
    watched.model = self.model
    return found
step_module.Step.__call__ = watched

from ncode_gen.train import main
from ncode_gen.runtime.workers import dist, full_tensor
run_command(main)
rank = dist.get_rank() if dist.is_initialized() else 0
out = Path(sys.argv[sys.argv.index("--out") + 1]) if "--out" in sys.argv else Path(sys.argv[2])
whole = {k: full_tensor(v).contiguous() for k, v in watched.model.state_dict().items()}
save_file(whole, out / f"rank{rank}.safetensors")
(out / f"rank{rank}.json").write_text(json.dumps(losses))
"""
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
REFINED = ["--observation.kind", "refined", "--observation.epochs", "1", "--observation.width", "8"]
SEEDED = [*TINY, "--training.epochs", "3", "--training.batch", "64", "--device", "cpu", *REFINED]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """The same recipe trained by one process, by two, and by two that share the model; returns their folder."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "worker.py").write_text(WORKER)
    for name, how, more in (("one", [], []), ("two", TWO, []), ("shares", TWO, ["--strategy", "fsdp"])):
        command = [sys.executable, *how, "worker.py", *SEEDED, *more, "--out", name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


def losses(path):
    return torch.tensor(json.loads(path.read_text()))


def test_two_processes_follow_the_loss_curve_of_one(runs: Any) -> None:
    one, two, other = (losses(runs / name) for name in ("one/rank0.json", "two/rank0.json", "two/rank1.json"))
    assert len(one) >= 50
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)
    assert torch.equal(two[:, :2], other[:, :2])


def test_both_processes_hold_the_same_weights(runs: Any) -> None:
    a, b = (load_file(runs / "two" / f"rank{rank}.safetensors") for rank in (0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    alone = load_file(runs / "one" / "rank0.safetensors")
    for key, value in a.items():
        torch.testing.assert_close(value, alone[key], rtol=1e-2, atol=1e-3)


def test_shares_of_a_model_are_trained_as_a_whole_one(runs: Any) -> None:
    one, shares = (losses(runs / name / "rank0.json") for name in ("one", "shares"))
    torch.testing.assert_close(shares, one, rtol=1e-4, atol=0)
    a, b = (load_file(runs / name / "weights.safetensors") for name in ("one", "shares"))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-2, atol=1e-3)
    states = [load_state(runs / name) for name in ("one", "shares")]
    parts = [state["phases"]["observation"]["trained"]["observation.refiner"] for state in states]
    sizes = [{key: value.shape for key, value in part.items()} for part in parts]
    assert sizes[0] == sizes[1]


def test_only_the_leading_process_writes(runs: Any) -> None:
    assert {path.name for path in (runs / "two").iterdir()} - {"rank1.safetensors", "rank1.json"} == {
        path.name for path in (runs / "one").iterdir()
    }
    assert [json.loads(line)["epoch"] for line in (runs / "two" / "metrics.jsonl").open()] == [1, 2, 3, 4]
    assert json.loads((runs / "two" / "environment.json").read_text())["processes"] == 2


def test_two_processes_score_as_one(runs: Any, command: Command) -> None:
    arguments = ["one", "--n", "600", "--particles", "8", "--device", "cpu", "--out"]
    assert command("evaluate", *arguments, "one.json", cwd=runs).returncode == 0
    done = subprocess.run(
        [sys.executable, *TWO, "-m", "--", "ncode_gen.evaluate", *arguments, "two.json"],
        cwd=runs,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((runs / name).read_text())["scores"] for name in ("one.json", "two.json"))
    assert one.keys() == two.keys()
    for key, score in one.items():
        assert two[key]["value"] == pytest.approx(score["value"], rel=1e-6, abs=1e-6), key
