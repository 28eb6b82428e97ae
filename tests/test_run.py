import json
import shutil
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file

import ncode_gen
from ncode_gen.errors import UserError
from ncode_gen.files import write_atomically
from ncode_gen.run import find_run, load_run, resolve_device, weights_digest


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_run_folder_explains_itself(trained):
    held = {path.name for path in trained.iterdir()}
    assert {"recipe.toml", "weights.safetensors", "metrics.jsonl", "environment.json", "state", "tensorboard"} <= held
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["packages"]["torch"] == metadata.version("torch")
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "nfe", "images_per_second", "validation_nats", "solver_gap_nats", "rate"} <= rows[0].keys()
    assert any((trained / "tensorboard").iterdir())


def test_the_folder_alone_is_enough(copied):
    for name in ("state", "tensorboard", "gallery"):
        shutil.rmtree(copied / name)
    model = ncode_gen.load(copied)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_loading_gives_the_weights_that_were_saved(trained):
    tensors = load_file(trained / "weights.safetensors")
    for key, value in load_run(trained).state_dict().items():
        assert torch.equal(value, tensors[key])
    assert len(weights_digest(trained)) == 16


def spoil_truncated(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_empty(folder):
    (folder / "weights.safetensors").write_bytes(b"")


def spoil_other_model(folder):
    path = folder / "recipe.toml"
    path.write_text(path.read_text().replace("dim = 3", "dim = 4"))


def spoil_other_file(folder):
    save_file({"a": torch.zeros(2)}, folder / "weights.safetensors")


def spoil_lost(folder):
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, path, metadata={"shape": "1,8,8"})


def spoil_missing(folder):
    (folder / "weights.safetensors").unlink()


SPOILED = {
    spoil_truncated: "damaged",
    spoil_empty: "damaged",
    spoil_other_model: "another model",
    spoil_other_file: "not written by ncode_gen",
    spoil_lost: "not finite",
    spoil_missing: "no finished run",
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_spoiled_run_is_refused_by_name(copied, spoil, message):
    spoil(copied)
    with pytest.raises(UserError, match=message) as error:
        load_run(copied)
    assert str(copied) in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "held.txt"
    path.write_text("old")

    def half(partial):
        partial.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as error:
        write_atomically(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path] and error.value.code == 1


def test_devices_and_runs_that_do_not_exist_are_named():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="--device nonsense"):
        resolve_device("nonsense")
    with pytest.raises(UserError, match="there is no run folder"):
        find_run("nowhere/at-all")
