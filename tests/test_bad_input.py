"""A user's mistake ends in one clear sentence, exit code 2, no traceback, and earlier files intact."""

import hashlib
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ncode_gen.command import run_command

from .conftest import TINY


def fingerprint(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pictures(folder, *, broken=None, lost=False):
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((20, 20, 3), 10 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    if broken is not None:
        (folder / "3.png").write_bytes(broken)
    if lost:
        values = np.zeros((20, 20), dtype=np.float32)
        values[3, 4] = np.nan
        Image.fromarray(values).save(folder / "9.tif")
    return folder


def text(path, content):
    path.write_text(content)
    return path


def cut(run):
    weights = run / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return run


def other(run):
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('loop = "open"', 'loop = "static"'))
    return run


def without(run, name):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


def spoiled_states(run):
    for name in ("training.pt", "previous.pt"):
        (run / "state" / name).write_bytes(b"PK\x03\x04 no state")
    return run


def folder_training(root):
    return ["--data.name", "folder", "--data.root", root]


# Each case: the command, its arguments made from a scratch folder and a copy of a finished run, what is printed.
CASES = {
    "unknown flag": ("train", lambda t, r: ["--training.epoch", 3], "--training.epochs"),
    "unknown choice": ("train", lambda t, r: ["--flow.loop", "opne"], "open"),
    "wrong type": ("train", lambda t, r: ["--training.epochs", "many"], "many"),
    "unknown key": ("train", lambda t, r: [text(t / "m.toml", "[flow]\nlop = 1")], "did you mean flow.loop"),
    "wrong type in a file": ("train", lambda t, r: [text(t / "m.toml", "seed = 1.5")], "seed must be a whole number"),
    "no TOML": ("train", lambda t, r: [text(t / "m.toml", "= 1")], "not valid TOML"),
    "misspelt model file": ("train", lambda t, r: ["models/mnist/ncode-opn.toml"], "mean models/mnist/ncode-open.toml"),
    "missing model file": ("train", lambda t, r: [t / "none.toml"], "no model file"),
    "a folder as model file": ("train", lambda t, r: [t], "cannot read"),
    "zero batch": ("train", lambda t, r: ["--training.batch", 0], "training.batch must be at least 1"),
    "negative steps": ("train", lambda t, r: ["--flow.steps", -1], "flow.steps must be at least 1"),
    "unknown solver": ("train", lambda t, r: ["--flow.method", "rk5"], "no solver is called 'rk5'"),
    "no density": ("train", lambda t, r: ["--flow.loop", "closed", "--flow.feedback", "dynamic"], "no density"),
    "missing data": ("train", lambda t, r: ["--data.name", "cifar10", "--data.root", t / "x"], "cifar-10-batches-py"),
    "missing folder": ("train", lambda t, r: folder_training(t / "none"), "there is no folder"),
    "empty folder": ("train", lambda t, r: folder_training(t), "holds 0 pictures"),
    "no image": ("train", lambda t, r: folder_training(pictures(t / "p", broken=b"text")), "3.png is not a readable"),
    "cut image": ("train", lambda t, r: folder_training(pictures(t / "p", broken=b"\x89PNG\r\n\x1a\n")), "3.png"),
    "a NaN in the data": ("train", lambda t, r: folder_training(pictures(t / "p", lost=True)), "9.tif holds a pixel"),
    "unknown device": ("train", lambda t, r: ["--device", "abacus"], "--device abacus"),
    "no CUDA": ("train", lambda t, r: ["--device", "cuda:9"], "--device cuda:9"),
    "existing run": ("train", lambda t, r: ["--out", r], "already holds a run"),
    "resume of nothing": ("train", lambda t, r: ["--resume", t / "none"], "is not a run folder"),
    "resume of something else": ("train", lambda t, r: ["--resume", pictures(t / "p")], "is not a run folder"),
    "resume of spoiled states": ("train", lambda t, r: ["--resume", spoiled_states(r)], "is damaged"),
    "resume of another model": ("train", lambda t, r: ["--resume", r, "--latent.dim", 9], "another model"),
    "resume and another model file": (
        "train", lambda t, r: [text(t / "m.toml", "seed = 5"), "--resume", r], "holds a run of another model than"
    ),
    "output is a file": ("train", lambda t, r: [*TINY, "--out", text(t / "file", "x")], "cannot write"),
    "missing run": ("sample", lambda t, r: [t / "none"], "there is no run folder"),
    "no argument": ("sample", lambda t, r: [], "run"),
    "truncated weights": ("sample", lambda t, r: [cut(r)], "weights.safetensors is damaged"),
    "weights of another model": ("sample", lambda t, r: [other(r)], "belongs to another model"),
    "no weights": ("sample", lambda t, r: [without(r, "weights.safetensors")], "not a finished run"),
    "no recipe": ("sample", lambda t, r: [without(r, "recipe.toml")], "not a finished run"),
    "no samples": ("sample", lambda t, r: [r, "--n", 0], "--n must be at least 1"),
    "unknown ending": ("sample", lambda t, r: [r, "--out", "a.mp3"], "must end with .png, .npz or /"),
    "output below a file": ("sample", lambda t, r: [r, "--out", text(t / "f", "x") / "a.png"], "cannot write"),
    "unknown format": ("gallery", lambda t, r: [r, "--format", "bmp"], "bmp"),
    "gallery without a run": ("gallery", lambda t, r: [t], "not a finished run"),
    "unknown features": ("evaluate", lambda t, r: [r, "--features", "vgg"], "--features: features.kind must be one of"),
    "missing weights file": ("evaluate", lambda t, r: [r, "--features_path", t / "no.pt"], "there is no file"),
    "spoiled features": (
        "evaluate", lambda t, r: [r, "--features_path", text(t / "w.safetensors", "x")], "does not hold the weights"
    ),
    "no Inception": (
        "evaluate",
        lambda t, r: [r, "--features", "inception", "--features_path", text(t / "w.pth", "x")],
        "Inception's weights could not be loaded",
    ),
    "negative particles": ("evaluate", lambda t, r: [r, "--particles", -3], "--particles must be at least 0"),
    "no refiner to leave out": ("evaluate", lambda t, r: [r, "--no-refine"], "has no refiner"),
    "a run and an image set": ("evaluate", lambda t, r: [r, "--data.name", "digits"], "leave --data.name out"),
    "images of no set": ("evaluate", lambda t, r: [t / "a.npz"], "add --data.name"),
    "particles for images": (
        "evaluate", lambda t, r: [t / "a.npz", "--data.name", "digits", "--particles", 9], "no likelihood"
    ),
    "missing images": ("evaluate", lambda t, r: [t / "a.npz", "--data.name", "digits"], "there is no file"),
    "one sample to score": ("evaluate", lambda t, r: [r, "--n", 1], "--n must be at least 2"),
}  # fmt: skip

WRITE_FAILURES = {"output is a file", "output below a file"}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_ends_in_one_clear_sentence(
    trained: Path, tmp_path: Path, name: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed; an error that is no exit would fail the test with its traceback."""
    kind, arguments, printed = CASES[name]
    run = shutil.copytree(trained, tmp_path / "run")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    given = arguments(scratch, run)
    before = fingerprint(tmp_path)
    monkeypatch.chdir(scratch)
    monkeypatch.setattr(sys, "argv", [f"{kind}.py", *map(str, given)])
    with pytest.raises(SystemExit) as stopped:
        run_command(importlib.import_module(f"ncode_gen.{kind}").main)
    said = capsys.readouterr().err
    assert stopped.value.code == (1 if name in WRITE_FAILURES else 2), said
    assert printed in " ".join(said.replace("│", " ").split())
    if said.startswith("error: "):
        assert len(said.strip().splitlines()) == 1
    else:
        assert f"python -m ncode_gen.{kind} --help" in said  # the command line's own answer
    after = fingerprint(tmp_path)
    assert {path: after.get(path) for path in before} == before


FULL = """
import sys
from ncode_gen.runtime import files
real = files.write_atomically
def full(path, write, **keep):
    def filling(partial):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    return real(path, filling if path.name == {name!r} else write, **keep)
import ncode_gen.runfolder.weights, ncode_gen.runfolder.state, ncode_gen.figures.style
for module in (files, ncode_gen.runfolder.weights, ncode_gen.runfolder.state, ncode_gen.figures.style):
    module.write_atomically = full
from ncode_gen.command import run_command
from ncode_gen.{command} import main
run_command(main)
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("train", "training.pt"),
        ("train", "weights.safetensors"),
        ("sample", "a.png"),
        ("gallery", "samples.png"),
        ("evaluate", "e.json"),
    ],
)
def test_no_room_on_the_disk_leaves_what_was_there(trained: Path, tmp_path: Path, kind: str, name: str) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = fingerprint(run)
    cases: dict[str, list[Any]] = {
        "train": [*TINY, "--out", "new"],
        "sample": [run, "--out", "a.png"],
        "gallery": [run],
        "evaluate": [run, "--n", 20, "--particles", 0, "--out", "e.json"],
    }
    script = FULL.format(name=name, command=kind)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, cases[kind])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # A state that cannot be written costs nothing that is done: training continues to its weights.
    assert done.returncode == (0 if name == "training.pt" else 1), done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert fingerprint(run) == before
    assert not list(tmp_path.rglob("*.partial"))
