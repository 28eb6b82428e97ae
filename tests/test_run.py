import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ncode_gen
from ncode_gen.config import Recipe
from ncode_gen.errors import UserError
from ncode_gen.runfolder.run import find_run, load_recipe, load_run, push, save_weights, weights_digest
from ncode_gen.runfolder.weights import write_weights
from ncode_gen.runtime.device import resolve_device
from ncode_gen.runtime.files import write_atomically


@pytest.fixture
def copied(trained, tmp_path: Path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_run_folder_explains_itself(trained: Path) -> None:
    held = {path.name for path in trained.iterdir()}
    assert {"recipe.toml", "weights.safetensors", "metrics.jsonl", "environment.json", "state", "tensorboard"} <= held
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["packages"]["torch"] == metadata.version("torch")
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "nfe", "images_per_second", "validation_nats", "solver_gap_nats", "lr"} <= rows[0].keys()
    assert any((trained / "tensorboard").iterdir())


def test_the_folder_alone_is_enough(copied: Any) -> None:
    for name in ("state", "tensorboard", "gallery"):
        shutil.rmtree(copied / name)
    model = ncode_gen.load(copied)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_loading_gives_the_weights_that_were_saved(trained: Path) -> None:
    tensors = load_file(trained / "weights.safetensors")
    for key, value in load_run(trained).state_dict().items():
        assert torch.equal(value, tensors[key])
    assert len(weights_digest(trained)) == 16


def test_a_recipe_of_another_version_is_read_without_its_idle_keys(copied: Any) -> None:
    path = copied / "recipe.toml"
    text = path.read_text()
    assert "hidden = 77" not in text  # the prior is a mixture
    path.write_text(text.replace("[prior]\n", "[prior]\nhidden = 77\n"))
    assert load_recipe(copied).to_toml() == text
    assert load_run(copied).sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match=r"prior\.hidden has no effect with prior.kind = .mixture., only with flow"):
        Recipe.load(path)


def test_weights_rounded_to_half_precision_take_half_the_bytes(copied: Any) -> None:
    before, size = load_run(copied), (copied / "weights.safetensors").stat().st_size
    save_weights(copied, before, load_recipe(copied), 2, half=True)
    after = load_run(copied)
    assert (copied / "weights.safetensors").stat().st_size < 0.7 * size
    for key, value in after.state_dict().items():
        assert value.dtype == before.state_dict()[key].dtype
        torch.testing.assert_close(value, before.state_dict()[key], atol=1e-7, rtol=1e-3)
    before.state_dict()["posterior.base.bias"].fill_(1e6)
    with pytest.raises(UserError, match=r"posterior\.base\.bias holds a number too large for float16"):
        save_weights(copied, before, load_recipe(copied), 2, half=True)


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
    write_weights(path, tensors, (1, 8, 8), (folder / "recipe.toml").read_text(), 2)


def spoil_one_bit(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def spoil_recipe(folder):
    path = folder / "recipe.toml"
    path.write_text(path.read_text().replace("steps = 2", "steps = 3"))


def spoil_huge(folder):
    path = folder / "recipe.toml"
    huge = path.read_text().replace("width = 8", "width = 1000000").replace("features = 16", "features = 1000000")
    path.write_text(huge)
    write_weights(folder / "weights.safetensors", load_file(folder / "weights.safetensors"), (1, 8, 8), huge, 2)


def spoil_pickle(folder):
    torch.save({"a": torch.zeros(2)}, folder / "weights.safetensors")


def spoil_header(folder):
    (folder / "weights.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}" * 50)


def spoil_link(folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    shutil.rmtree(folder / "gallery")
    (folder / "gallery").symlink_to(outside)


def spoil_missing(folder):
    (folder / "weights.safetensors").unlink()


SPOILED = {
    spoil_truncated: "damaged",
    spoil_empty: "damaged",
    spoil_other_model: "another model",
    spoil_other_file: "not written by ncode_gen",
    spoil_lost: "not finite",
    spoil_missing: "not a finished run",
    spoil_one_bit: "checksum is wrong",
    spoil_recipe: r"its flow\.steps is 2, the recipe says 3",
    spoil_huge: "another model",
    spoil_pickle: "damaged or not a safetensors",
    spoil_header: "damaged or not a safetensors",
    spoil_link: "gallery is a link out of its run folder",
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_spoiled_run_is_refused_by_name(copied: Any, spoil: Any, message: Any) -> None:
    spoil(copied)
    with pytest.raises(UserError, match=message) as error:
        load_run(copied)
    assert str(copied) in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("old")

    def half(partial):
        partial.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as error:
        write_atomically(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path] and error.value.code == 1


def test_devices_and_runs_that_do_not_exist_are_named() -> None:
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="--device nonsense"):
        resolve_device("nonsense")
    with pytest.raises(UserError, match="there is no run folder"):
        find_run("nowhere/at-all")


def test_links_inside_a_run_folder_are_followed(copied: Any) -> None:
    (copied / "weights.safetensors").rename(copied / "held")
    (copied / "weights.safetensors").symlink_to("held")
    load_run(copied)


@pytest.fixture
def cached(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Hub's cache with the run someone/tiny in it, as the Hub lays it out, and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("recipe.toml", "weights.safetensors"):
        shutil.copy(trained / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **what: real(**what, cache_dir=tmp_path / "hub"))
    return snapshot


def test_a_run_of_the_hub_is_loaded_from_its_cache_without_a_network(
    cached: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ncode_gen.load("someone/tiny")
    assert all(torch.equal(value, load_run(trained).state_dict()[key]) for key, value in model.state_dict().items())
    (cached / "recipe.toml").unlink()
    (cached / "recipe.toml").symlink_to(trained / "recipe.toml")
    with pytest.raises(UserError, match="is a link out of its run folder"):
        ncode_gen.load("someone/tiny")


def test_what_the_hub_does_not_hold_is_reported(cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nor could it be fetched from the Hugging Face Hub"):
        ncode_gen.load("someone/other")


def test_push_makes_a_repository_of_a_run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            calls.append((repo_id, folder_path))
            assert "weights.safetensors" in allow_patterns and not any("state" in name for name in allow_patterns)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(trained, "someone/tiny", private=True) == "https://huggingface.co/someone/tiny"
    assert calls == [("someone/tiny", {"private": True, "exist_ok": True}), ("someone/tiny", trained)]
    with pytest.raises(UserError, match="is not the USER/NAME"):
        push(trained, "tiny")


def test_weights_written_before_a_key_existed_are_loaded(copied: Any) -> None:
    """A recipe in the header that lacks a key has its default, as a recipe in a file has."""
    path = copied / "weights.safetensors"
    older = "".join(line for line in (copied / "recipe.toml").open() if not line.startswith("augment ="))
    write_weights(path, load_file(path), (1, 8, 8), older, 2)
    load_run(copied)
