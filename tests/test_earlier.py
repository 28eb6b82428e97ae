"""Run folders of an earlier version, in tests/earlier/: they load, sample, go on, and are listed.

Each was trained there for one epoch; `expected.safetensors` are the weights after a second one, trained there as well.
"""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ncode_gen
from ncode_gen.config import Recipe
from ncode_gen.config.earlier import is_earlier
from ncode_gen.errors import UserError
from ncode_gen.runfolder.run import load_recipe
from ncode_gen.runfolder.weights import renamed

from .conftest import ROOT, Command
from .test_trainer import fit

EARLIER = ROOT / "tests" / "earlier"
NEXT = {"closed": "training", "joint": "training", "wae": "training", "refined": "observation"}


@pytest.fixture(params=NEXT)
def run(request: pytest.FixtureRequest, tmp_path: Path):
    return shutil.copytree(EARLIER / request.param, tmp_path / request.param)


def test_it_samples_and_is_listed(run: Any, command: Command) -> None:
    assert ncode_gen.load(str(run)).sample(3).shape == (3, 1, 8, 8)
    done = command("runs", ".", cwd=run.parent)
    assert done.returncode == 0 and run.name in done.stdout and "finished" in done.stdout
    assert f"{run.name} was written by an earlier version" in done.stdout


def test_it_goes_on_as_it_would_have_there(run: Any, command: Command) -> None:
    done = command("train", "--resume", run.name, f"--{NEXT[run.name]}.epochs", "2", "--quiet", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert not is_earlier(tomllib.loads((run / "recipe.toml").read_text()))
    expected, found = renamed(load_file(run / "expected.safetensors")), load_file(run / "weights.safetensors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_its_keys_are_those_of_today() -> None:
    recipe = load_recipe(EARLIER / "refined")
    observation = recipe.observation.values()
    assert recipe.observation.kind == "refined" and observation["alpha"] == 0.4 and observation["zero_mean_residual"]
    assert recipe.objective.values()["stochastic_targets"] and recipe.likelihood.kind == "gaussian"
    closed, joint, wae = (load_recipe(EARLIER / name) for name in ("closed", "joint", "wae"))
    assert closed.flow.values()["feedback_control"] == "film" and closed.prior.values()["iterations"] == 5
    assert joint.prior.kind == "joint-flow" and joint.prior.values()["log_det_by"] == "steps"
    assert wae.objective.values()["mmd_weight"] == 10 and wae.training.lr == 2e-3


def test_the_first_epochs_of_a_refined_model_cannot_become_more(tmp_path: Path) -> None:
    """Earlier versions kept nothing of their optimiser."""
    run = shutil.copytree(EARLIER / "refined", tmp_path / "run")
    recipe = load_recipe(run)
    more = Recipe.from_dict({**recipe.to_dict(), "training": {**recipe.training.values(), "epochs": 2}})
    with pytest.raises(UserError, match=r"without the optimiser of its first 1 epochs; leave training.epochs"):
        fit(more, run, resume=True)
