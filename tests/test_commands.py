"""Every command, as a user runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ncode_gen.runtime.device

from .conftest import ROOT, TINY, Command

COMMANDS = ("train", "sample", "gallery", "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(command: Command, tmp_path: Path, name: Any) -> None:
    done = command(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"python -m ncode_gen.{name}" in done.stdout and "--device" in done.stdout
    if name == "train":
        assert "--flow.loop" in done.stdout and "Peak learning rate" in done.stdout


def test_training_ends_with_the_path_of_its_gallery(command: Command, tmp_path: Path) -> None:
    done = command("train", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    gallery = done.stdout.strip().splitlines()[-1]
    assert gallery == "gallery: runs/digits-ncode-open/gallery"
    assert {path.name for path in (tmp_path / gallery.removeprefix("gallery: ")).iterdir()} == {
        "samples.png",
        "reconstructions.png",
        "interpolations.png",
        "trajectories.png",
        "filmstrip.png",
        "animation.gif",
        "report.html",
    }


def test_no_library_that_takes_seconds_is_imported_for_samples(trained: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ncode_gen.sample import main\n"
        "for out in ('grid.png', 'array.npz', 'single/'): main([sys.argv[1], '--n', '2', '--out', sys.argv[2] + out])\n"
        "found = {'torch._dynamo', 'torchvision', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code, str(trained), f"{tmp_path}/"], check=True)


def test_samples_are_written_in_every_form_and_repeat(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command("sample", trained, "--n", 9, "--out", "a.png", cwd=tmp_path).returncode == 0
    assert command("sample", trained, "--n", 9, "--out", "b.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert command("sample", trained, "--n", 9, "--seed", 1, "--out", "c.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    assert command("sample", trained, "--n", 12, "--out", "array.npz", cwd=tmp_path).returncode == 0
    images = np.load(tmp_path / "array.npz")["images"]
    assert images.shape == (12, 8, 8, 1) and images.min() >= 0 and images.max() <= 1
    assert command("sample", trained, "--n", 12, "--out", "single/", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == [f"{i:02d}.png" for i in range(12)]
    single = np.asarray(Image.open(tmp_path / "single" / "03.png")) / 255
    assert np.abs(single - images[3, :, :, 0]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("has_bf16", [True, False])
def test_samples_in_half_precision_look_the_same(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr(ncode_gen.runtime.device, "computes_in_bf16", lambda device: has_bf16)
    printed = {}
    for precision in ("float32", "bf16"):
        asked = ("--n", 12, "--precision", precision, "--out", f"{precision}.npz")
        printed[precision] = command("sample", trained, *asked, cwd=tmp_path).stdout
    whole, half = (np.load(tmp_path / f"{precision}.npz")["images"] for precision in printed)
    assert half.dtype == np.float32 and np.abs(half - whole).mean() < 1 / 255
    assert np.array_equal(half, whole) is not has_bf16 and ("no native bf16" in printed["bf16"]) is not has_bf16


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_the_gallery_comes_as_vector_graphics_too(command: Command, trained: Path, tmp_path: Path, kind: str) -> None:
    done = command("gallery", trained, "--out", tmp_path / "out", "--format", kind, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob(f"*.{kind}"))) == 5
    with Image.open(tmp_path / "out" / "animation.gif") as animation:
        assert animation.n_frames > 10


def test_evaluation_writes_scores_with_their_protocol(command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("evaluate", trained, "--n", 300, "--particles", 8, "--out", "e.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["scores"].keys() == {
        "fid",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "interpolation",
        "probe",
        "elbo_nats",
        "nll_nats",
        "bits_per_dim",
        "mse",
        "psnr",
        "distortion_nats",
        "ssim",
        "nfe",
    }
    for score in result["scores"].values():
        assert score["low"] <= score["value"] <= score["high"]
    protocol = result["protocol"]
    assert protocol["n"] == 300 and protocol["test_images"] == 270 and protocol["particles"] == 8
    assert protocol["solver"]["moved_nats"] < 0.05 and "nll_gap_nats" in protocol["solver"]
    assert "FID[digits-classifier, n=300, test]" in done.stdout
    again = command("evaluate", trained, "--n", 300, "--particles", 8, "--out", "f.json", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "f.json").read_text())["scores"] == result["scores"]


def test_a_score_that_could_mislead_is_flagged(command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("evaluate", trained, "--n", 50, "--particles", 0, "--out", "e.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fewer than twice the 64 features" in done.stdout
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["protocol"]["warnings"] and "nll_nats" not in result["scores"]


def test_a_folder_of_colour_pictures_trains_samples_and_scores(command: Command, tmp_path: Path) -> None:
    """The path is all that is given; sizes, modes and formats are mixed."""
    pytest.importorskip("efficientnet_lite_pytorch")
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        side = random.integers(20, 70, 2)
        colour = random.integers(0, 256, 3)
        picture = Image.fromarray(np.broadcast_to(colour, (*side, 3)).astype(np.uint8))
        picture.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    small = ("--training.epochs", 1, "--encoder.width", 4, "--decoder.width", 4)
    recipe = ROOT / "models" / "folder" / "ncode-open.toml"
    done = command("train", recipe, "--data.root", folder, "--out", "run", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command("sample", "run", "--n", 4, cwd=tmp_path).returncode == 0
    done = command("evaluate", "run", "--n", 8, "--particles", 4, "--features", "efficientnet-lite0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["scores"]["bits_per_dim"]["value"] > 0


@pytest.mark.parametrize("kind", ["vae", "node", "ncode-closed", "ncode-autoencoder"])
def test_every_model_of_the_digits_trains_and_scores(command: Command, tmp_path: Path, kind: str) -> None:
    done = command("train", f"models/digits/{kind}.toml", "--training.epochs", 1, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("evaluate", "run", "--n", 200, "--particles", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())["scores"]
    assert ("nll_nats" in scores) == (kind != "ncode-autoencoder")
    assert ("nfe" in scores) == (kind != "vae")


def test_a_run_is_found_by_its_place_in_checkpoints(command: Command, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    done = command("sample", "checkpoints/digits-ncode-open", "--n", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_published_runs_are_listed_from_anywhere(command: Command, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    done = command("runs", "checkpoints", cwd=tmp_path)
    assert done.returncode == 0 and "digits-ncode-open" in done.stdout and "damaged" not in done.stdout
