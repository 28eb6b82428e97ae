"""Components of a user's own, each in one file outside the package, as README's "How to add" tells it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ncode_gen
from ncode_gen.errors import UserError

from .conftest import Command

PLUGINS = Path(__file__).parent / "plugins"
RECIPE = """
name = "own"

[encoder]
kind = "pooled"
pool = 4

[prior]
kind = "laplace"
least_scale = 0.01

[features]
kind = "random"
filter_seed = 3

[decoder]
width = 8

[flow]
hidden = 8

[latent]
dim = 3

[training]
epochs = 1
batch = 256
"""
# A module, or a file.
NAMED = [part for name in ("laplace_prior", "pooled_encoder", "random_features.py") for part in ("--plugin", name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A folder that holds a recipe and the files of its components, as a user has them beside each other."""
    folder = tmp_path_factory.mktemp("own")
    for file in PLUGINS.glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    (folder / "own.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def trained(folder, command: Command):
    done = command("train", "own.toml", *NAMED, "--out", "run", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_all_commands_use_them_through_a_recipe(trained: Path, command: Command) -> None:
    recipe = (trained / "run" / "recipe.toml").read_text()
    assert 'plugins = [\n    "laplace_prior",\n    "pooled_encoder",\n    "random_features",\n]' in recipe
    done = command("sample", "run", *NAMED, "--n", "4", "--out", "samples.npz", "--quiet", cwd=trained)
    assert done.returncode == 0, done.stderr
    done = command("evaluate", "run", *NAMED, "--n", "130", "--particles", "2", "--quiet", cwd=trained)
    assert done.returncode == 0, done.stderr
    protocol = json.loads((trained / "run" / "evaluation.json").read_text())["protocol"]
    assert (
        protocol["features"] == {"name": "random", "size": 16, "digest": f"{3:016x}"} and protocol["prior"] == "laplace"
    )
    done = command("train", *NAMED, "--resume", "run", "--training.epochs", "2", "--quiet", cwd=trained)
    assert done.returncode == 0, done.stderr


def test_the_prior_is_fitted_and_the_weights_are_read_back(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(trained))
    model = ncode_gen.load(str(trained / "run"), plugins=["laplace_prior", "pooled_encoder", "random_features"])
    median, scale = model.prior.get_buffer("median"), model.prior.get_buffer("scale")
    assert type(model.prior).__name__ == "LaplacePrior" and not torch.equal(scale, torch.ones(3))
    samples = model.prior.sample(20000, torch.Generator().manual_seed(0))
    assert torch.allclose((samples - median).abs().mean(0), scale, rtol=0.05)


@pytest.mark.parametrize("name", ["sample", "evaluate", "gallery"])
def test_a_run_that_needs_a_plugin_names_it_and_imports_nothing(trained: Path, name: str) -> None:
    """Whoever wrote the run folder does not decide what is imported; in a process where nothing was registered."""
    command = [sys.executable, "-m", f"ncode_gen.{name}", "run"]
    done = subprocess.run(command, cwd=trained, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--plugin" in done.stderr and any(file.stem in done.stderr for file in PLUGINS.glob("*.py"))


def test_a_recipe_cannot_import_a_module(trained: Path) -> None:
    (trained / "evil.py").write_text("raise SystemExit('imported')")
    recipe = 'plugins = ["evil"]\n[prior]\nkind = "evil"\n'
    with pytest.raises(UserError, match=r"needs the plugin evil: if you trust it, name it with --plugin evil"):
        ncode_gen.config.Recipe.parse(recipe, "here")
    assert "evil" not in sys.modules


def test_keys_of_a_plugin_are_checked_and_shown(trained: Path, command: Command) -> None:
    done = command("train", "own.toml", *NAMED, "--prior.least-scale", "-1", cwd=trained)
    assert done.returncode == 2 and "prior.least_scale must be above 0" in done.stderr.replace("\n", " ")
    done = command("train", "own.toml", *NAMED, "--prior.components", "3", cwd=trained)
    assert done.returncode == 2 and "prior.components has no effect" in done.stderr
    done = command("train", "own.toml", *NAMED, "--help", cwd=trained)
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert "Smallest scale of a dimension." in shown and "laplace: Independent Laplace" in shown


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing_module", None, "plugin missing_module cannot be imported"),
        ("missing.py", None, "there is no plugin missing.py"),
        ("broken.py", "1 / 0", "plugin broken.py cannot be imported (ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(
    trained: Path, command: Command, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (trained / name).write_text(text)
    done = command("sample", "run", "--plugin", name, cwd=trained)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_a_plugin_may_be_an_entry_point_of_an_installed_package(trained: Path) -> None:
    """What a package that declares the group ncode_gen.plugins brings is known without being named."""
    info = trained / "site" / "own-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ncode_gen.plugins]\nlaplace = laplace_prior\n")
    script = "from ncode_gen.config import Recipe; print(Recipe.from_dict({'prior': {'kind': 'laplace'}}).prior.kind)"
    paths = f"import sys; sys.path[:0] = [{str(trained / 'site')!r}, {str(trained)!r}]; "
    done = subprocess.run([sys.executable, "-c", paths + script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "laplace", done.stderr


ALL = """
name = "all"

[data]
name = "stripes"
count = 512

[posterior]
kind = "uniform"

[flow]
loop = "shift"

[decoder]
kind = "affine"

[likelihood]
kind = "laplace"
scale = 0.1

[observation]
kind = "rounded"

[objective]
kind = "slow-elbo"

[latent]
dim = 8

[training]
epochs = 20
batch = 64
lr = 0.01
"""


def test_every_kind_of_component_can_be_a_users_own(tmp_path: Path, command: Command) -> None:
    (tmp_path / "all.toml").write_text(ALL)
    plugin = ["--plugin", str(PLUGINS / "everything_else.py"), "--quiet"]
    done = command("train", "all.toml", *plugin, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("train", "--resume", "run", "--training.epochs", 21, *plugin, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("sample", "run", *plugin, "--n", 300, "--out", "samples.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    samples = np.load(tmp_path / "samples.npz")["images"]
    assert set(np.unique(samples)) == {0, 1}
    assert (samples == samples[:, :1]).mean() > 0.8  # the model has learnt that columns are constant
    done = command("evaluate", "run", *plugin, "--n", 130, "--particles", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    protocol = json.loads((tmp_path / "run" / "evaluation.json").read_text())["protocol"]
    assert protocol["data"] == "stripes" and protocol["likelihood"] == "uniformly dequantised"
    assert (tmp_path / "run" / "gallery" / "report.html").exists()
