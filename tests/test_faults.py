"""What goes wrong while a model is trained: numbers, disks, kills."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ncode_gen.config import section
from ncode_gen.errors import UserError
from ncode_gen.runfolder.records import JsonLines
from ncode_gen.runfolder.state import STATE, load_state
from ncode_gen.runtime.signals import Interrupted
from ncode_gen.training.objective import Elbo
from ncode_gen.training.step import Step

from .conftest import TINY
from .test_trainer import fit, recipe_of, rows_of


def poison(monkeypatch: pytest.MonkeyPatch, steps):
    """Let the losses of the given steps be NaN."""
    real, taken = Elbo.__call__, 0

    def call(self, *inputs):
        nonlocal taken
        value, nats = real(self, *inputs)
        taken += 1
        return (value * float("nan") if taken - 1 in steps else value), nats

    monkeypatch.setattr(Elbo, "__call__", call)


def test_a_batch_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {5})
    model = fit(recipe_of(epochs=3), tmp_path)
    assert [row["skipped"] for row in rows_of(tmp_path)] == [0, 1, 0]
    assert all(row["loss"] == row["loss"] for row in rows_of(tmp_path))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert "epoch 2: 1 batches were skipped" in " ".join(capsys.readouterr().err.split())
    assert all(float(held["step"]) == 11 for held in load_state(tmp_path)["phases"]["model"]["moments"].values())


def test_a_skipped_batch_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 is lost: the weights after it are those after step 1."""
    weights = []
    real = Step.__call__

    def watched(self, *inputs):
        found = real(self, *inputs)
        weights.append([parameter.detach().clone() for parameter in self.model.parameters()])
        return found

    monkeypatch.setattr(Step, "__call__", watched)
    poison(monkeypatch, {2})
    fit(recipe_of(epochs=1), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[2], weights[3], strict=True))


def test_too_many_in_a_row_stop_the_run_with_step_rate_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(5, 99)))
    with pytest.raises(UserError, match=r"3 batches in a row, the last at step 8 \(learning rate .* lower tr") as error:
        fit(recipe_of(epochs=9, training={"max_skipped": 2}), tmp_path)
    assert error.value.code == 1
    assert load_state(tmp_path)["phases"]["model"]["progress"]["step"] == 4


def test_a_solve_that_hits_its_cap_is_counted_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncode_gen.distributions import build

    real = build.build_model

    def capped(recipe, shape):
        model = real(recipe, shape)
        for flow in model.flows:
            flow.options = flow.options.__class__(**{**vars(flow.options), "max_steps": 1})
        return model

    from ncode_gen.training import start

    monkeypatch.setattr(start, "build_model", capped)
    recipe = recipe_of(flow=section("flow", hidden=8, method="dopri5", tolerance=1e-6), training={"max_skipped": 1})
    with pytest.raises(UserError, match="2 batches in a row"):
        fit(recipe, tmp_path)


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    whole = fit(recipe_of(), tmp_path / "whole").state_dict()
    parts = fit(recipe_of(training={"accumulate": 4}), tmp_path / "parts").state_dict()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match=r"training.batch = 64 cannot be shared evenly"):
        fit(recipe_of(training={"accumulate": 3}), tmp_path / "uneven")


def test_half_precision_scales_its_loss(tmp_path: Path) -> None:
    fit(recipe_of(epochs=1, training={"precision": "fp16"}), tmp_path)
    assert load_state(tmp_path)["phases"]["model"]["scaler"]["scale"] > 1
    assert rows_of(tmp_path)[0]["loss"] > 0


class FullDisk:
    """Writes fail from a moment on, as on a full disk."""

    def __init__(self, monkeypatch):
        self.full, real = False, os.fsync

        def fsync(file):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_is_reported_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, real = FullDisk(monkeypatch), JsonLines.append

    def append(self, row):
        disk.full = row["epoch"] == 2
        real(self, row)

    monkeypatch.setattr(JsonLines, "append", append)
    fit(recipe_of(epochs=3), tmp_path)
    printed = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in printed and "the state before it is kept; training continues" in printed
    assert load_state(tmp_path)["phases"]["model"]["progress"]["epoch"] == 3


def test_weights_that_cannot_be_written_leave_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, real = FullDisk(monkeypatch), JsonLines.append

    def append(self, row):
        real(self, row)
        disk.full = row["epoch"] == 2

    monkeypatch.setattr(JsonLines, "append", append)
    with pytest.raises(UserError, match=r"cannot write .*weights.safetensors: No space left"):
        fit(recipe_of(epochs=2), tmp_path)
    disk.full = False
    assert load_state(tmp_path)["phases"]["model"]["progress"]["epoch"] == 1
    monkeypatch.setattr(JsonLines, "append", real)
    resumed = fit(recipe_of(epochs=2), tmp_path, resume=True).state_dict()
    whole = fit(recipe_of(epochs=2), tmp_path / "whole").state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_lines_that_could_not_be_written_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "missing" / "rows.jsonl")
    with pytest.raises(UserError, match="cannot write"):
        lines.append({"a": 1})
    lines.path.parent.mkdir()
    lines.append({"a": 2})
    with lines.path.open("a") as file:
        file.write('{"a": 3, "b"')  # cut off by a kill
    assert lines.read() == [{"a": 1}, {"a": 2}]
    lines.keep(lambda row: row["a"] > 1)
    assert lines.read() == [{"a": 2}] and lines.damaged == 0


STORM = [*TINY, "--training.epochs", "8", "--training.batch", "64", "--quiet"]


@pytest.mark.parametrize("kills", [int(os.environ.get("NCODE_KILLS", "6"))])
def test_kills_at_any_moment_change_nothing(tmp_path: Path, kills: Any) -> None:
    """`NCODE_KILLS` says how many kills; the moments are spread over start, steps, saving, prior and gallery."""
    started = time.monotonic()
    # A process of its own, as those that are killed: its start is one of the moments.
    subprocess.run([sys.executable, "-m", "ncode_gen.train", *STORM, "--out", "whole"], cwd=tmp_path, check=True)
    whole = time.monotonic() - started
    moments = torch.rand(kills, generator=torch.Generator().manual_seed(0)) * whole
    run, done = tmp_path / "run", 0
    for number in range(10 * kills):
        resume = ["--resume", "run"] if (run / "recipe.toml").exists() else [*STORM, "--out", "run"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ncode_gen.train", *resume, "--quiet"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            code = process.wait(timeout=float(moments[number])) if number < kills else process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        printed = process.stderr.read()
        assert code in (0, -signal.SIGKILL), printed
        done += code != 0
        if number >= kills:
            break
    assert done > 0
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "run"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not list(run.rglob("*.partial"))
    assert [row["epoch"] for row in rows_of(run)] == list(range(1, 9))
    assert (run / STATE).exists()


def results_of(folder):
    """Return a run's rows without times and without the sums that tie them to the run."""
    other = {"seconds", "images_per_second", "check"}
    return [{key: value for key, value in row.items() if key not in other} for row in rows_of(folder)]


@pytest.mark.parametrize("refiner", [section("observation"), section("observation", kind="refined", width=8, epochs=2)])
def test_a_signal_in_any_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refiner: Any) -> None:
    """The last step of an epoch too: the state is saved before the epoch's end, which comes when training continues."""
    recipe = recipe_of(epochs=2, observation=refiner)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    rows = results_of(tmp_path / "whole")
    taken, real = 0, Step.__call__

    def interrupted(self, *inputs):
        nonlocal taken
        found = real(self, *inputs)
        taken += 1
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Step, "__call__", interrupted)
    folder, stops = tmp_path / "run", 0
    while True:
        try:
            parts = fit(recipe, folder, resume=stops > 0).state_dict()
            break
        except Interrupted:
            stops += 1
    assert stops == taken == rows[-1]["step"]
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert results_of(folder) == rows


def test_signals_save_and_say_how_to_go_on(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        arguments = [*TINY, "--training.epochs", "100000", "--training.compile", "off", "--out", str(code)]
        process = subprocess.Popen(
            [sys.executable, "-m", "ncode_gen.train", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        metrics, until = tmp_path / str(code) / "metrics.jsonl", time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
        assert process.returncode == code
        assert f"Continue with: python -m ncode_gen.train --resume {code}" in printed and "Traceback" not in printed
        done = load_state(tmp_path / str(code))["phases"]["model"]["progress"]["epoch"]
        again = [sys.executable, "-m", "ncode_gen.train", "--resume", str(code), "--training.epochs", str(done + 1)]
        finished = subprocess.run([*again, "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
