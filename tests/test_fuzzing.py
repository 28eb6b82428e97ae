"""Spoiled run folders and recipes: each is refused with the name of what is wrong, or changes nothing that is used.

`NCODE_FUZZ` says how many of each are tried.
"""

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, changed_keys
from ncode_gen.data.sets import load_data
from ncode_gen.distributions.describe import describe
from ncode_gen.errors import UserError
from ncode_gen.runfolder.history import read_run
from ncode_gen.runfolder.run import load_run
from ncode_gen.runfolder.state import load_state
from ncode_gen.runtime.signals import StopRequest
from ncode_gen.runtime.workers import ALONE
from ncode_gen.training.start import Start

from .conftest import TINY, Command

TRIES = int(os.environ.get("NCODE_FUZZ", "30"))
FILES = (
    *("weights.safetensors", "recipe.toml", "environment.json", "metrics.jsonl", "evaluation.json"),
    *("state/training.pt", "state/previous.pt"),
)


@contextlib.contextmanager
def at_most(seconds):
    """Fail, if what is inside hangs."""

    def fail(number, frame):
        pytest.fail(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, command: Command):
    """Two scored runs of different models, and one of the first's recipe with another seed."""
    folder = tmp_path_factory.mktemp("pair")
    for name, more in (("a", []), ("b", ["--latent.dim", "4"]), ("c", ["--seed", "1"])):
        done = command("train", *TINY, *more, "--out", name, "--quiet", cwd=folder)
        assert done.returncode == 0, done.stderr
        done = command("evaluate", name, "--n", "130", "--particles", "2", "--quiet", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def used(folder):
    """Return all that is used of a run folder: samples, what is listed of it, and what training would go on from."""
    model = load_run(folder)
    samples = model.sample(3, torch.Generator().manual_seed(0)).tolist()
    record = read_run(folder)
    state = load_state(folder)
    going_on = None
    if state is not None:
        recipe = Recipe.load(folder / "recipe.toml")
        check = StopRequest().check
        start = Start(recipe, load_data(recipe.data), folder, torch.device("cpu"), check, quiet=True, workers=ALONE)
        with start.reporter:
            start.begin(True)
        going_on = {key: value.tolist() for key, value in start.phases[0].model.state_dict().items()}
    shown = (record.progress, record.rows, record.scores, record.protocol, record.environment.get("seed"))
    notices = [*record.notices, *([state.notice] if state is not None and state.notice else [])]
    return (samples, json.dumps(shown), going_on), notices


def spoil(folder, pair, dice):
    """Spoil one file of a run folder; return its path inside, and what was done."""
    name = dice.choice(FILES)
    path = folder / name
    content = bytearray(path.read_bytes())
    kind = dice.choice(("flip", "flips", "cut", "empty", "swap", "grow", "remove", "zeros"))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 20):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        content = content[: dice.randrange(len(content))]
    elif kind == "empty":
        content = bytearray()
    elif kind == "grow":
        content += dice.randbytes(30)
    elif kind == "zeros":
        start = dice.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "swap":
        other = dice.choice(("b", "c"))
        content = bytearray((pair / other / dice.choice((name, name, dice.choice(FILES)))).read_bytes())
    path.unlink()
    if kind != "remove":
        path.write_bytes(content)
    return name, kind


def test_a_spoiled_run_folder_is_reported_or_changes_nothing(
    pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = used(shutil.copytree(pair / "a", tmp_path / "whole"))
    refused = 0
    for seed in range(TRIES):
        dice = random.Random(seed)
        folder = shutil.copytree(pair / "a", tmp_path / f"run{seed}")
        name, kind = spoil(folder, pair, dice)
        capsys.readouterr()
        try:
            with at_most(60):
                found, notices = used(folder)
        except UserError as error:
            refused += 1
            assert str(folder) in str(error) and "\n" not in str(error), (seed, name, kind, str(error))
        else:
            printed = " ".join(" ".join([*notices, capsys.readouterr().err]).split())
            same = found == whole
            # What is lost without a word is what a folder need not hold; the rest of it is used as it was.
            lost = kind == "remove" and name in ("metrics.jsonl", "evaluation.json", "state/training.pt")
            assert same or lost or name.rpartition("/")[2] in printed or "going on with" in printed, (
                seed,
                name,
                kind,
                printed,
            )
        shutil.rmtree(folder)
    assert refused > TRIES / 5


def test_commands_end_a_spoiled_run_folder_in_one_sentence(pair: Any, tmp_path: Path, command: Command) -> None:
    for seed in range(max(4, TRIES // 10)):
        dice = random.Random(1000 + seed)
        folder = shutil.copytree(pair / "a", tmp_path / f"run{seed}")
        name, kind = spoil(folder, pair, dice)
        for words in (("sample", folder, "--n", 2, "--out", "x.png"), ("runs", folder), ("train", "--resume", folder)):
            with at_most(120):
                done = command(*words, cwd=tmp_path)
            assert done.returncode in (0, 2), (seed, name, kind, words, done.stderr)
            if done.returncode:
                assert done.stderr.startswith("error: ") or "error: " in done.stderr.splitlines()[-1]
        shutil.rmtree(folder)


def spoiled_recipe(text, dice):
    lines = text.splitlines()
    kind = dice.choice(("character", "value", "key", "drop", "repeat", "section", "bytes"))
    spot = dice.randrange(len(lines))
    if kind == "character":
        place = dice.randrange(len(text))
        return text[:place] + dice.choice("0123456789.-[]\"'=#e \n\0é") + text[place + dice.choice((0, 1)) :]
    if kind == "bytes":
        content = bytearray(text.encode())
        for _ in range(3):
            content[dice.randrange(len(content))] = dice.randrange(256)
        return bytes(content)
    if kind == "value":
        values = (
            "0",
            "-1",
            "1e308",
            "nan",
            "inf",
            "true",
            '""',
            '"../x"',
            "[]",
            "{}",
            "99999999999999999999",
            "1979-05-27",
        )
        lines[spot] = lines[spot].split("=")[0] + "= " + dice.choice(values)
    elif kind == "key":
        lines[spot] = "x" + lines[spot]
    elif kind == "drop":
        del lines[spot]
    elif kind == "repeat":
        lines.insert(spot, lines[spot])
    else:
        lines.insert(spot, dice.choice(("[flow]", "[training]", "[nothing]", "[[data]]", "[data.more]")))
    return "\n".join(lines)


def test_a_spoiled_recipe_is_refused_or_means_what_it_says(pair: Any, tmp_path: Path) -> None:
    """What is accepted says in TOML what the recipe then holds, and makes a model that trains or is refused by name."""
    text = (pair / "a" / "recipe.toml").read_text()
    path = tmp_path / "spoiled.toml"
    refused = 0
    for seed in range(TRIES):
        spoiled = spoiled_recipe(text, random.Random(seed))
        path.write_bytes(spoiled if isinstance(spoiled, bytes) else spoiled.encode())
        with at_most(60):
            try:
                recipe = Recipe.load(path)
            except UserError as error:
                refused += 1
                assert str(path) in str(error), (seed, str(error))
                continue
            held = tomllib.loads(recipe.to_toml())
            said = tomllib.loads(path.read_text(encoding="utf-8"))
            lost = {key: pair for key, pair in changed_keys(said, held).items() if pair[0] is not None}
            usual = Recipe()
            for key, (value, _) in lost.items():  # keys without an effect are not written back; they have usual values
                section, _, name = key.rpartition(".")
                assert value == getattr(getattr(usual, section) if section else usual, name), (seed, key)
            try:
                describe(recipe, (1, 8, 8))
            except UserError as error:
                assert recipe.name in str(error) or "flow" in str(error), (seed, str(error))
    assert refused > TRIES / 4


def test_a_spoiled_recipe_ends_the_command_in_one_sentence(pair: Any, tmp_path: Path, command: Command) -> None:
    text = (pair / "a" / "recipe.toml").read_text()
    path = tmp_path / "spoiled.toml"
    small = ["--training.epochs", "1", "--data.limit", "64", "--training.batch", "32", "--quiet"]
    importlib.import_module("ncode_gen.train")
    for seed in range(max(4, TRIES // 10)):
        spoiled = spoiled_recipe(text, random.Random(5000 + seed))
        path.write_bytes(spoiled if isinstance(spoiled, bytes) else spoiled.encode())
        with at_most(300):
            done = command("train", path, *small, "--out", f"out{seed}", cwd=tmp_path)
        assert done.returncode in (0, 2), (seed, spoiled, done.stderr)
        if done.returncode:
            assert "error: " in done.stderr or "--help" in done.stderr
