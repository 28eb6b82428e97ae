"""What surrounds the program: git, backends, caches, file systems, terminals, signals. None of it stops the work."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ncode_gen
from ncode_gen.command import run_command
from ncode_gen.config import Recipe
from ncode_gen.control.native import build
from ncode_gen.distributions.priors import FlowPrior, GaussianMixture
from ncode_gen.errors import UserError
from ncode_gen.runfolder.state import load_state
from ncode_gen.runtime import environment as run
from ncode_gen.runtime import files
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_atomically
from ncode_gen.runtime.paths import user_path
from ncode_gen.runtime.seeding import folded, seeded
from ncode_gen.runtime.signals import handle_signals, stop_signals

from .conftest import ROOT, TINY, Command
from .test_trainer import fit, recipe_of

CPU = torch.device("cpu")
PACKAGE = Path(ncode_gen.__file__).parent


def child(script, *words, cwd, **environment):
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, *([] if script is None else ["-c", script]), *map(str, words)], cwd=cwd, text=True,
        capture_output=True, check=False, env={**os.environ, **environment}, encoding="utf-8", errors="replace",
    )  # fmt: skip


# Whose commit


def git(*words, cwd):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *words], cwd=cwd, check=True, capture_output=True)


def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path: Path) -> None:
    """Installed into an environment that is kept inside a project of the user's, with or without its files in git."""
    (tmp_path / "env").mkdir()
    shutil.copytree(PACKAGE, tmp_path / "env" / "ncode_gen", ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q", cwd=tmp_path)
    git("add", "env/ncode_gen/errors.py", cwd=tmp_path)
    git("commit", "-q", "-m", "theirs", cwd=tmp_path)
    script = (
        "import torch; from ncode_gen.runtime.environment import describe_environment as describe; "
        "print(describe(torch.device('cpu'), 0)['commit'])"
    )
    done = child(script, cwd=tmp_path, PYTHONPATH=str(tmp_path / "env"))
    assert done.stdout.strip() == "None", done.stderr
    shutil.move(tmp_path / "env" / "ncode_gen", tmp_path / "ncode_gen")
    git("add", "ncode_gen", cwd=tmp_path)
    git("commit", "-q", "-m", "ours", cwd=tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", child(script, cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout.strip())


@pytest.mark.parametrize("wrong", ["absent", "broken", "hangs", "not text"])
def test_git_is_never_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str) -> None:
    def answer(command, **options):
        if wrong == "absent":
            raise FileNotFoundError("git")
        if wrong == "hangs":
            raise subprocess.TimeoutExpired(command, 20)
        if wrong == "not text":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")
        raise subprocess.CalledProcessError(128, command, stderr="dubious ownership")

    monkeypatch.setattr(run.subprocess, "run", answer)
    assert describe_environment(CPU, 0)["commit"] is None


def test_packages_without_metadata_and_a_removed_folder_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name):
        raise run.metadata.PackageNotFoundError(name)

    def gone():
        raise FileNotFoundError("the folder was removed")

    monkeypatch.setattr(run.metadata, "version", missing)
    monkeypatch.setattr(Path, "cwd", staticmethod(gone))
    found = describe_environment(CPU, 3)
    assert found["packages"]["torchvision"] is None and found["seed"] == 3


# Optional parts


def test_settings_of_matplotlib_that_cannot_be_met_are_left_aside(trained: Path, tmp_path: Path) -> None:
    """An unknown backend, a LaTeX and a font that nobody has."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: A Font Nobody Has\n")
    done = child(None, "-m", "ncode_gen.gallery", trained, "--out", "g", cwd=tmp_path, MPLBACKEND="nonsense")
    assert done.returncode == 0 and (tmp_path / "g" / "samples.png").exists(), done.stderr
    assert "Traceback" not in done.stderr and "MPLBACKEND=nonsense is not a backend" in done.stderr


@pytest.mark.parametrize("error", [RuntimeError("protobuf"), TypeError("descriptors"), ImportError("no tensorboard")])
def test_tensorboard_may_raise_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any
) -> None:
    from ncode_gen.training import reporter as progress

    def broken(*arguments):
        raise error

    monkeypatch.setattr(progress, "Curves", broken)
    fit(recipe_of(epochs=1), tmp_path)
    printed = " ".join(capsys.readouterr().err.split())
    assert str(error) in printed and "training continues without curves" in printed
    assert (tmp_path / "weights.safetensors").exists()


def test_a_gallery_that_cannot_be_made_does_not_lose_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    from ncode_gen import figures

    def broken(*arguments, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures, "draw_gallery", broken)
    done = command("train", *TINY, "--training.epochs", 1, "--out", "r", cwd=tmp_path)
    assert done.returncode == 0 and "the gallery could not be made (no fonts); the model is trained" in done.stderr
    assert (tmp_path / "r" / "weights.safetensors").exists() and (tmp_path / "r" / "gallery" / "report.html").exists()


USE = """
import torch
from ncode_gen import NCODE
from ncode_gen.control.native.build import load
torch.manual_seed(0)
print(NCODE(2)(torch.ones(3, 2)).state.shape, load("shallow") is not None)
"""


@pytest.fixture
def compiler(tmp_path: Path):
    """A compiler that takes no time: what it writes is always the same."""
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\nfor last; do :; done\n[ "$1" = --version ] && echo 1 || echo a library > "$last"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("damage", ["none", "cut", "empty", "text", "no digest", "other digest", "no library"])
def test_a_damaged_compiled_library_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Any, damage: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "x.cpp"
    source.write_text("int main;")
    library = build._built(compiler, source)
    digest = library.with_suffix(".sha256")
    whole, written = library.read_bytes(), library.stat().st_mtime_ns
    assert hashlib.sha256(whole).hexdigest() == digest.read_text()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no library"}
    if damage in contents:
        library.write_bytes(contents[damage])
    elif damage in ("no library", "no digest"):
        (library if damage == "no library" else digest).unlink()
    elif damage == "other digest":
        digest.write_text("0" * 64)
    assert build._built(compiler, source) == library and library.read_bytes() == whole
    assert hashlib.sha256(whole).hexdigest() == digest.read_text()
    assert (library.stat().st_mtime_ns == written) == (damage == "none")


def test_a_library_that_is_cut_in_half_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = build._built("c++", Path(build.__file__).with_name("shallow.cpp"))
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    done = child(USE, cwd=tmp_path, CXX="c++")
    assert done.returncode == 0 and "True" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "settings",
    [{"CXX": "no-such-compiler"}, {"CXX": "echo"}, {"XDG_CACHE_HOME": "/proc/none"}],
    ids=str,
)  # fmt: skip
def test_without_a_compiler_or_a_cache_flows_are_solved_in_torch(tmp_path: Path, settings: Any) -> None:
    if "XDG_CACHE_HOME" not in settings:
        settings = {**settings, "XDG_CACHE_HOME": str(tmp_path)}
    done = child(USE, cwd=tmp_path, **settings)
    assert done.returncode == 0 and "torch.Size([2, 3, 2])" not in done.stdout, done.stderr
    assert "torch.Size([3, 2])" in done.stdout and "Traceback" not in done.stderr


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(unknown))
    assert build.cache_folder().name == "ncode_gen"


# Draws


def test_a_draw_replaces_an_earlier_larger_one(trained: Path, tmp_path: Path, command: Command) -> None:
    for count in (120, 9):
        done = command("sample", trained, "--n", count, "--out", "drawn/", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "drawn").glob("*.png"))) == count
    scored = ("evaluate", "drawn", "--data.name", "digits", "--quiet")
    assert command(*scored, cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "drawn-evaluation.json").read_text())["protocol"]["images_held"] == 9


def test_a_draw_does_not_mix_with_other_pictures(trained: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "mine" / "deep" / "0.png")
    for place in ("mine", "mine/deep"):
        done = command("sample", trained, "--n", 3, "--out", f"{place}/", cwd=tmp_path)
        assert done.returncode == 2 and "holds 1 pictures that are not samples of ncode_gen" in done.stderr
    assert sorted(path.name for path in (tmp_path / "mine").rglob("*.png")) == ["0.png"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert command("sample", trained, "--n", 3, "--out", "notes", cwd=tmp_path).returncode == 0
    assert (tmp_path / "notes" / "notes.txt").exists()


def test_a_gallery_keeps_no_figure_of_an_earlier_model(trained: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "g").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "g" / "refiner-trajectory.png")
    assert command("gallery", trained, "--out", "g", "--quiet", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "g" / "refiner-trajectory.png").exists() and (tmp_path / "g" / "samples.png").exists()


# Small and odd sets


def grey(folder, count, same=False):
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)
    for i, value in enumerate(values):
        Image.fromarray(values[0] if same else value).save(folder / f"{i}.png")


def small(folder, *more):
    return ("train", *TINY, "--data.name", "folder", "--data.root", folder, "--data.size", 8, "--data.grey", "--quiet",
            "--training.epochs", 1, "--out", "r", *more)  # fmt: skip


SCORED = ("evaluate", "r", "--n", 20, "--particles", 2, "--features", "digits-classifier")


def test_too_few_pictures_for_the_prior_are_reported_before_the_first_step(tmp_path: Path, command: Command) -> None:
    grey(tmp_path / "p", 8)
    for kind in ("mixture", "flow"):
        done = command(*small("p", "--prior.kind", kind, "--prior.components", 10), cwd=tmp_path)
        assert done.returncode == 2 and "too few for a prior with prior.components = 10; set" in done.stderr
        assert not (tmp_path / "r" / "metrics.jsonl").exists()
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
    done = command(*small("p", "--prior.components", 2), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["one test picture", "identical", "two", "four"])
def test_what_is_undefined_is_left_out_with_its_reason(tmp_path: Path, command: Command, kind: str) -> None:
    if kind in ("one test picture", "two"):
        grey(tmp_path / "p" / "train", 20)
        grey(tmp_path / "p" / "test", 1 if kind == "one test picture" else 2)
    else:
        grey(tmp_path / "p", 30 if kind == "identical" else 4, same=kind == "identical")
    done = command(*small("p", "--prior.components", 1), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command(*SCORED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    printed = " ".join(found["protocol"]["warnings"])
    assert {"mse", "nll_nats", "precision"} <= found["scores"].keys()
    if kind in ("one test picture", "four"):
        assert "fid" not in found["scores"] and "fid, kid: undefined for one image" in printed
    if kind == "identical":
        assert "interpolation" not in found["scores"] and "interpolation: undefined for these images" in printed
        assert "interpolation: undefined" in " ".join(done.stdout.split())


def test_priors_fit_identical_and_few_latents() -> None:
    for prior in (GaussianMixture(3, 0), GaussianMixture(3, 2), FlowPrior(3, hidden=8, iterations=3)):
        prior.fit(torch.ones(5, 3))
        assert bool(prior.sample(4).isfinite().all())


# Seeds


@pytest.mark.parametrize("seed", [1_732_771_234_567_890_123_456, -1, 2**63])
def test_any_whole_number_is_a_seed(trained: Path, tmp_path: Path, command: Command, seed: Any) -> None:
    for name in ("a", "b"):
        done = command("sample", trained, "--n", 3, "--seed", seed, "--out", f"{name}.npz", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    done = command(
        "evaluate", trained, "--n", 130, "--limit", 20, "--particles", 2, "--seed", seed, "--out", "e.json", "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["protocol"]["seed"] == seed


def test_seeds_of_a_recipe_may_be_time_stamps(tmp_path: Path) -> None:
    fit(Recipe(**{**vars(recipe_of(epochs=1)), "seed": 1_732_771_234_567_890_123}), tmp_path)
    assert (tmp_path / "weights.safetensors").exists()
    assert len({folded(seed) for seed in (-1, -2, 2**63, 2**64, 2**100)}) == 5
    assert not torch.equal(torch.rand(3, generator=seeded(-1)), torch.rand(3, generator=seeded(-2)))


# Text in and out


@pytest.mark.parametrize("name", ["run[bold] [1]", "run[/red]", "a:smile:é"])
def test_names_are_printed_as_they_are(trained: Path, tmp_path: Path, command: Command, name: str) -> None:
    folder = tmp_path / name
    if "/" in name:
        folder.parent.mkdir()
    shutil.copytree(trained, folder)
    done = command("runs", folder, cwd=tmp_path)
    assert done.returncode == 0 and name in done.stdout, done.stderr
    done = command("runs", folder, folder, "--compare", cwd=tmp_path)
    assert done.returncode == 0 and folder.name in done.stdout
    done = command("evaluate", folder, "--n", 130, "--limit", 20, "--particles", 0, cwd=tmp_path)
    assert done.returncode == 0 and f"written to {folder}/evaluation.json" in done.stdout
    (folder / "state" / "training.pt").write_bytes(b"spoiled")
    done = command("train", "--resume", folder, cwd=tmp_path)
    assert done.returncode == 0 and f"{folder}/state/training.pt is damaged" in " ".join(done.stderr.split("\n"))
    done = command("sample", tmp_path / "none[bold]", cwd=tmp_path)
    assert "none[bold]" in done.stderr


def test_a_home_folder_may_be_written_as_a_tilde(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(trained, tmp_path / "run")
    grey(tmp_path / "p", 8)
    (tmp_path / "m.toml").write_text('[data]\nname = "folder"\nroot = "~/p"\nsize = 8\n[prior]\ncomponents = 1\n')
    place = tmp_path / "place"
    place.mkdir()
    words: list[Any] = [*TINY, "--training.epochs", 1, "--quiet"]
    for arguments in (
        ("sample", "~/run", "--n", 2, "--out=~/a.png"),
        ("sample", "~/run", "--n", 2, "--out=~/drawn/"),
        ("gallery", "~/run", "--out=~/g", "--quiet"),
        ("evaluate", "~/run", "--n", 130, "--limit", 9, "--particles", 0, "--out=~/e.json", "--quiet"),
        ("runs", "~/run"),
        ("train", "~/m.toml", *words, "--out=~/folder"),
        ("train", "--data.name", "folder", "--data.root=~/p", "--data.size", 8, "--prior.components", 1, *words,
         "--out", "~/other"),
        ("train", "--resume=~/other", "--quiet"),
    ):  # fmt: skip
        done = command(str(arguments[0]), *arguments[1:], cwd=place)
        assert done.returncode == 0, (arguments, done.stderr)
    assert list(place.iterdir()) == []
    assert {"a.png", "drawn", "g", "e.json", "folder", "other"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="no home folder"):
        user_path("~nobody-has-this-name/x")


def test_a_recipe_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "marked"\r\n[training]\r\nepochs = 3\r\n')
    assert Recipe.load(path).name == "marked" and Recipe.load(path).training.epochs == 3
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes('name = "é"'.encode(encoding))
        with pytest.raises(UserError, match=r"m.toml is not UTF-8 text"):
            Recipe.load(path)


def test_a_terminal_without_letters_gets_all_that_was_written(trained: Path, tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shutil.copytree(trained, tmp_path / "läuft→")
    for words in (("sample", "läuft→", "--n", 2, "--out", "bild→.png"), ("sample", "nicht→da")):
        done = child(None, "-m", f"ncode_gen.{words[0]}", *words[1:], cwd=tmp_path, **ascii_only)
        assert "Traceback" not in done.stderr and done.returncode == (2 if "nicht→da" in words else 0), done.stderr
    assert (tmp_path / "bild→.png").exists()


def test_names_that_are_no_text_are_data_but_no_run_folder(trained: Path, tmp_path: Path, command: Command) -> None:
    grey(tmp_path / "p", 8)
    for path in list((tmp_path / "p").iterdir()):
        os.rename(path, os.fsencode(tmp_path / "p") + b"/\xff" + os.fsencode(path.name))
    done = command(*small("p", "--prior.components", 1), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command(*SCORED, "--quiet", cwd=tmp_path)
    assert done.returncode == 0 and "are not those of this run" not in done.stderr
    done = command("train", *TINY, "--out", os.fsdecode(b"r\xff"), cwd=tmp_path)
    assert done.returncode == 2 and "is not a UTF-8 name" in done.stderr


# File systems


class Refusing:
    """A file system that knows no rights, no flushing and no moving."""

    def __init__(self, monkeypatch, number, refused):
        error = OSError(number, os.strerror(number))

        def refuse(*arguments, **options):
            raise error

        places = {"fsync": (os, "fsync"), "chmod": (Path, "chmod"), "replace": (Path, "replace")}
        for name in refused:
            monkeypatch.setattr(*places[name], refuse)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EACCES])
@pytest.mark.parametrize("refused", [("chmod", "fsync"), ("replace",), ("chmod", "fsync", "replace")], ids="+".join)
def test_simple_file_systems_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Any, refused: Any
) -> None:
    if number == errno.EXDEV and refused != ("replace",):
        pytest.skip("only a move crosses devices")
    path, kept = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("before")
    Refusing(monkeypatch, number, refused)
    write_atomically(path, lambda partial: partial.write_text("after"), keep=kept)
    assert path.read_text() == "after" and kept.read_text() == "before"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_full_disk_is_still_an_error_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    Refusing(monkeypatch, errno.ENOSPC, ("fsync",))
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, lambda partial: partial.write_text("after"))
    assert path.read_text() == "before"


def test_a_copy_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    Refusing(monkeypatch, errno.EXDEV, ("replace",))
    real = shutil.copyfile

    def half(source, target, **options):
        if Path(target) == path and Path(source).read_text() == "after":
            path.write_text("af")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, **options)

    monkeypatch.setattr(files.shutil, "copyfile", half)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, lambda partial: partial.write_text("after"))
    assert path.read_text() == "before" and [place.name for place in tmp_path.iterdir()] == ["a.txt"]


def test_training_works_on_such_a_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, errno.EPERM, ("chmod", "fsync", "replace"))
    fit(recipe_of(epochs=1), tmp_path / "r")
    assert load_state(tmp_path / "r")["phases"]["model"]["progress"]["epoch"] == 1
    fit(recipe_of(epochs=2), tmp_path / "r", resume=True)
    assert not list((tmp_path / "r").rglob("*.partial"))


# Signals of clusters


def test_a_signal_that_warns_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [*TINY, "--training.epochs", "100000", "--training.compile", "off", "--out", "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ncode_gen.train", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    metrics, until = tmp_path / "r" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None and not metrics.exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, printed
    assert "Continue with: python -m ncode_gen.train --resume r" in printed and "Traceback" not in printed
    assert load_state(tmp_path / "r")["phases"]["model"]["progress"]["epoch"] > 0


def test_repeated_warnings_do_not_break_the_saving_off() -> None:
    with handle_signals() as stop:
        for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2):
            signal.raise_signal(number)
        assert stop.number == signal.SIGUSR2


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
        with handle_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_command_begins_and_goes_on(tmp_path: Path, command: Command) -> None:
    """As a job that is queued again: the same words, whatever is there."""
    (tmp_path / "m.toml").write_text("[training]\nepochs = 1\n")
    words = ("train", "m.toml", *TINY[4:], "--resume", "runs/job", "--quiet")
    for _ in range(2):
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert load_state(tmp_path / "runs" / "job")["phases"]["model"]["progress"]["epoch"] == 1
    done = command("train", "m.toml", *TINY[4:], "--latent.dim", 5, "--resume", "runs/job", cwd=tmp_path)
    assert done.returncode == 2
    (tmp_path / "empty").mkdir()
    done = command("train", *TINY, "--training.epochs", 1, "--resume", "empty", cwd=tmp_path)
    assert done.returncode == 0 and "starts from the beginning" in " ".join(done.stderr.split())
    shutil.rmtree(tmp_path / "runs" / "job" / "state")
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0 and "starts from the beginning" in " ".join(done.stderr.split())


def test_an_error_with_a_line_break_in_a_name_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv):
        raise UserError("there is no file a\nb")

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: there is no file a\\nb\n"


def test_the_package_that_is_installed_is_small(tmp_path: Path) -> None:
    """Code, recipes, feature networks and the digits model: at most 6 MB as a compressed archive."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for place in ("ncode_gen", *targets["wheel"]["force-include"]):
            for file in (ROOT / place).rglob("*"):
                if "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(ROOT))
    assert (tmp_path / "wheel.zip").stat().st_size <= 6_000_000
