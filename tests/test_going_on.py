"""Going on after a change: position and schedule are counted in images."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.data.sets import load_data
from ncode_gen.errors import UserError
from ncode_gen.runfolder.records import JsonLines
from ncode_gen.runfolder.state import STATE, load_state, save_state
from ncode_gen.runtime.signals import Interrupted
from ncode_gen.runtime.workers import ALONE, Workers
from ncode_gen.training import step as step_module
from ncode_gen.training.loop import train
from ncode_gen.training.phases import ModelPhase, RefinerPhase
from ncode_gen.training.start import Start

from .conftest import TINY
from .test_trainer import CPU, fit, recipe_of, rows_of

N = 256


class Watch:
    """Notes what each step is given, and sends a signal after some of them."""

    def __init__(self, monkeypatch):
        self.rates, self.seen, self.stop_after = [], [], -1
        real = step_module.Step.__call__

        def call(step, parts, lr):
            found = real(step, parts, lr)
            self.rates.append(lr)
            if self.stop_after == 0:
                signal.raise_signal(signal.SIGTERM)
            self.stop_after -= 1
            return found

        monkeypatch.setattr(step_module.Step, "__call__", call)
        for kind in (ModelPhase, RefinerPhase):
            monkeypatch.setattr(kind, "arguments", self.noted(kind.arguments))

    def noted(self, real):
        def arguments(phase, images, numbers):
            self.seen.append(numbers.tolist())
            return real(phase, images, numbers)

        return arguments


def with_batch(recipe, batch, **training):
    values = {**vars(recipe.training), "batch": batch, **training}
    return Recipe(**{**vars(recipe), "training": type(recipe.training)(**values)})


def run_through(recipe, folder, watch, changes):
    """Train, stopped after some steps each time, with another batch from there on."""
    begun = False
    for steps, batch in changes:
        watch.stop_after = steps - 1
        with pytest.raises(Interrupted):
            fit(with_batch(recipe, batch), folder, resume=begun)
        begun = True
    watch.stop_after = -1
    return fit(with_batch(recipe, changes[-1][1]), folder, resume=True)


KINDS = {"model": section("observation"), "refined": section("observation", kind="refined", width=8, epochs=2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [(64, 16), (16, 64), (64, 100), (48, 7), (32, 256)])
def test_another_batch_repeats_no_image_and_keeps_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Any, kind: Any
) -> None:
    recipe, watch = recipe_of(epochs=2, observation=KINDS[kind]), Watch(monkeypatch)
    first, second = batches
    run_through(recipe, tmp_path, watch, [(2, first), (1, second)])
    rows, place, starts = rows_of(tmp_path), 0, []
    assert [row["epoch"] for row in rows] == list(range(1, 5 if kind == "refined" else 3))
    for row in rows:
        starts.append(place)
        seen = []
        while len(seen) < row["images"]:
            seen += watch.seen[place]
            place += 1
        assert max(Counter(seen).values()) == 1 and len(seen) >= N // second * second
    assert place == len(watch.seen)
    # Each part of training goes up once and down once, nearly to zero, and never below.
    for start, end in pairwise([0, starts[2], place] if kind == "refined" else [0, place]):
        rates = watch.rates[start:end]
        top = rates.index(max(rates))
        assert min(rates) >= 0 and max(rates) <= 2e-3
        assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
        assert second == N or rates[-1] < 0.3 * max(rates)


def test_the_schedule_of_an_unchanged_run_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    fit(recipe_of(epochs=2), tmp_path)
    assert watch.rates == [step_module.learning_rate(2e-3, 0.03, step, 8) for step in range(8)]


def test_a_larger_training_set_begins_the_epoch_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, watch = recipe_of(epochs=2), Watch(monkeypatch)
    watch.stop_after = 1
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path)
    watch.stop_after = -1
    data = type(recipe.data)(limit=320)
    fit(Recipe(**{**vars(recipe), "data": data}), tmp_path, resume=True)
    assert "256 training images have become 320: epoch 1 starts over" in " ".join(capsys.readouterr().err.split())
    assert [row["images"] for row in rows_of(tmp_path)] == [320, 320]


@pytest.mark.parametrize(("before", "after"), [("float32", "fp16"), ("fp16", "float32"), ("float32", "bf16")])
def test_another_precision_goes_on(tmp_path: Path, before: str, after: str) -> None:
    fit(recipe_of(epochs=1, training={"precision": before}), tmp_path)
    fit(recipe_of(epochs=2, training={"precision": after}), tmp_path, resume=True)
    rows = rows_of(tmp_path)
    assert len(rows) == 2 and rows[1]["loss"] < rows[0]["loss"] and rows[1]["skipped"] <= 2


def test_settings_of_the_optimiser_are_the_recipes(tmp_path: Path) -> None:
    fit(recipe_of(epochs=1), tmp_path)
    recipe = recipe_of(epochs=2, training={"weight_decay": 0.25})
    start = Start(recipe, load_data(recipe.data), tmp_path, CPU, lambda: None, quiet=True, workers=ALONE)
    with start.reporter:
        (phase, *_) = start.begin(True)
    assert {group["weight_decay"] for group in phase.step.optimiser.param_groups} == {0.25}


def as_earlier(state):
    """Return a state as the first versions wrote it: flat, with weights by their old names, and batches counted."""
    phase, old = state["phases"]["model"], {"observation.decoder": "decoder", "observation.likelihood": "likelihood"}
    flat = {
        part: {
            f"{old.get(path, path)}.{name}": value for path, held in phase[part].items() for name, value in held.items()
        }
        for part in ("trained", "average")
    }
    at = phase["progress"]
    progress = {"epoch": at["epoch"], "batch": at["batches"], **{key: at[key] for key in ("step", "sums", "seconds")}}
    kept = {key: phase[key] for key in ("scaler", "skipped_in_a_row", "generator")}
    kept["optimiser"] = {"state": dict(enumerate(phase["moments"].values()))}
    recipe = state["recipe"].replace("lr =", "rate =")
    head = {"run": state["run"], "recipe": recipe, "random": state["random"], "refining": False}
    return {**head, **kept, "model": flat["trained"], "average": flat["average"], "progress": progress}


def test_a_state_that_counts_batches_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions wrote it."""
    recipe = recipe_of(epochs=2)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    watch = Watch(monkeypatch)
    watch.stop_after = 1
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    watch.stop_after = -1
    save_state(tmp_path / "run", as_earlier(load_state(tmp_path / "run")))
    parts = fit(recipe, tmp_path / "run", resume=True).state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_losses_of_a_whole_batch_are_not_parted(tmp_path: Path) -> None:
    for objective, prior in (
        (section("objective", kind="wae"), section("prior", kind="normal")),
        (section("objective", free_nats=2.0), section("prior")),
    ):
        recipe = recipe_of(objective=objective, prior=prior, training={"accumulate": 2})
        with pytest.raises(UserError, match=r"a loss of the whole batch, which training.accumulate would part"):
            recipe.check()
        whole = recipe_of(objective=objective, prior=prior)

        with pytest.raises(UserError, match="a loss of the whole batch, which 2 processes cannot share"):
            train(whole, load_data(whole.data), tmp_path, device=CPU, quiet=True, workers=Workers(count=2))
    one = with_batch(recipe_of(objective=section("objective", kind="wae"), prior=section("prior", kind="normal")), 1)
    with pytest.raises(UserError, match="needs at least 2, got 1"):
        fit(one, tmp_path)


EPOCHS = 8
STORM = [*TINY, "--training.epochs", str(EPOCHS), "--quiet"]


def started(words, folder, processes, log):
    """Start the processes of a training, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    found = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {**together, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        found.append(subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=environment))
    return found


@pytest.mark.parametrize("kills", [int(os.environ.get("NCODE_KILLS", "1"))])
def test_kills_with_changes_of_batch_and_processes_end_in_one_schedule(tmp_path: Path, kills: Any) -> None:
    """`NCODE_KILLS` says how many; what is killed has another batch and other processes when it goes on."""
    dice = torch.Generator().manual_seed(1)
    run, code, killed = tmp_path / "run", 1, 0

    def chance(count):
        return int(torch.randint(count, (), generator=dice))

    while code or killed < kills:
        batch, processes = (16, 32, 64, 128, 256)[chance(5)], 1 + (chance(3) == 0)
        resume = ["--resume", "run"] if (run / "recipe.toml").exists() else [*STORM, "--out", "run"]
        words = [sys.executable, "-m", "ncode_gen.train", *resume, "--training.batch", str(batch), "--device", "cpu"]
        with (tmp_path / "log").open("w+") as log:
            training = started([*words, "--quiet"], tmp_path, processes, log)
            until = time.monotonic() + (3 + 6 * float(torch.rand((), generator=dice)) if killed < kills else 300)
            while time.monotonic() < until and any(process.poll() is None for process in training):
                time.sleep(0.05)
            ended = all(process.poll() is not None for process in training)
            if not ended:
                assert killed < kills, "a training without kills hangs"
                number = signal.SIGTERM if chance(2) else signal.SIGKILL
                for process in training:
                    process.send_signal(number)
                killed += 1
                grace = time.monotonic() + 20  # as schedulers have it: one may wait for another that is gone
                while time.monotonic() < grace and any(process.poll() is None for process in training):
                    time.sleep(0.05)
                for process in training:
                    process.kill()
            codes = [process.wait(timeout=60) for process in training]
            log.seek(0)
            code = 1 if not ended else max(codes)
            assert not ended or code == 0, log.read()
            if ended and killed < kills:  # begun again, so that all kills meet a training
                shutil.rmtree(run)
                code = 1
    assert code == 0
    rows = JsonLines(run / "metrics.jsonl", load_state(run)["run"]).read()
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    images = load_data(Recipe.load(run / "recipe.toml").data).train
    assert all(len(images) - 256 < row["images"] <= len(images) for row in rows)
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True) and 0 <= rates[-1] < 0.05 * rates[0]
    assert (run / STATE).exists()
