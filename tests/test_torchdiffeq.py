"""torchdiffeq's methods train, evaluate and load, whoever imports it first."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ncode_gen.solvers import SolveOptions, solve

from .conftest import TINY, Command

SCRIPT = """
import sys, tempfile, warnings
warnings.simplefilter("ignore")
if sys.argv[1] == "first":
    import torchdiffeq
import torch
from pathlib import Path
import ncode_gen
from ncode_gen.data import load_data
from ncode_gen.config import Recipe, section
from ncode_gen.training.loop import train

torch.set_num_threads(1)
found = {}
for method in sys.argv[2:]:
    recipe = Recipe(
        data=section("data", limit=64), latent=section("latent", dim=2),
        encoder=section("encoder", width=4, features=8),
        decoder=section("decoder", width=4), flow=section("flow", hidden=4, method="torchdiffeq:" + method),
        prior=section("prior", kind="normal"), training=section("training", epochs=1, batch=32),
    )
    with tempfile.TemporaryDirectory() as folder:
        splits = load_data(recipe.data)
        trained = train(recipe, splits, Path(folder), device=torch.device("cpu"), quiet=True)
        model = ncode_gen.load(folder)
        images = splits.test.first(8)
        found[method] = float(model.log_likelihood(images, 4, torch.Generator().manual_seed(0)).mean())
        assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), model.state_dict().values()))
assert max(found.values()) - min(found.values()) < 0.05, found
import torchdiffeq
decayed = torchdiffeq.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))
assert abs(float(decayed[-1]) - 0.36788) < 1e-4
print(len(found), "methods")
"""


@pytest.mark.parametrize("imported", ["first", "last"])
def test_every_method_trains_loads_and_scores(imported: str, tmp_path: Path) -> None:
    from ncode_gen.solvers.options import library_solvers

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, imported, *library_solvers()],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(library_solvers())), "methods"]


def test_the_commands_take_an_adaptive_method(tmp_path: Path, command: Command) -> None:
    tiny = [word for word, before in zip(TINY, ["", *TINY], strict=False) if "--flow.steps" not in (word, before)]
    chosen = ("--flow.method", "torchdiffeq:dopri5", "--data.limit", 256, "--out", "r")
    done = command("train", *tiny, *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (("evaluate", "r", "--n", 130, "--limit", 40, "--particles", 2, "--quiet"), ("sample", "r", "--n", 4)):
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["meta", "inference"])
def test_a_first_use_under_any_mode_leaves_the_library_whole(mode: str, tmp_path: Path) -> None:
    """What it computes at import stays for the process."""
    script = {
        "meta": "with torch.device('meta'):\n    NCODE(2, method='torchdiffeq:dopri5')",
        "inference": "with torch.inference_mode():\n    NCODE(2, method='torchdiffeq:dopri5')(torch.ones(3, 2))",
    }[mode]
    check = (
        "x = torch.ones(3, 2, requires_grad=True)\n"
        "NCODE(2, method='torchdiffeq:dopri5')(x).state.sum().backward()\n"
        "import torchdiffeq\n"
        "y = torchdiffeq.odeint(lambda t, y: -y, torch.ones(1, requires_grad=True), torch.tensor([0.0, 1.0]))[-1]\n"
        "y.backward()\nassert abs(float(y) - 0.36788) < 1e-4 and x.grad is not None"
    )
    program = f"import torch\nfrom ncode_gen import NCODE\n{script}\n{check}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_a_step_that_underflows_loses_the_samples_not_the_run() -> None:
    found = solve(
        lambda t, s: (s[0] * torch.nan,), (torch.ones(2),), [0.0, 1.0], SolveOptions(method="torchdiffeq:dopri5")
    )
    assert not bool(found.reached.any()) and "needs steps below the resolution of time" in found.status
