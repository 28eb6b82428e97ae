"""A flow of pixels from the command line: trained, sampled by label, scored, drawn, tuned."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Command

SMALL = ["--training.epochs", 1, "--prior.iterations", 20, "--observation.width", 8, "--data.limit", 256]


@pytest.fixture(scope="module")
def flow_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flow")
    done = command("train", "models/digits/ncode-flow-labels.toml", *SMALL, "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def arrays(path: Path) -> Any:
    return np.load(path)["images"]


def test_the_gallery_shows_controls_noises_and_labels(flow_run: Path) -> None:
    drawn = {path.stem for path in (flow_run / "run" / "gallery").glob("*.png")}
    assert {"controls", "noises", "labels", "pixels-trajectory", "samples", "reconstructions"} <= drawn


def test_scores_have_likelihoods_labels_and_both_ways_of_reconstruction(flow_run: Path, command: Command) -> None:
    done = command("evaluate", "run", "--n", 200, "--likelihood-images", 4, cwd=flow_run)
    assert done.returncode == 0, done.stderr
    found = json.loads((flow_run / "run" / "evaluation.json").read_text())
    scores, protocol = found["scores"], found["protocol"]
    assert {"bits_per_dim", "bits_per_dim_bound", "rate_nats", "label_accuracy", "label_fid", "psnr_inverted"} <= set(
        scores
    )
    assert scores["psnr_inverted"]["value"] > scores["psnr_fresh"]["value"]
    assert protocol["likelihood_images"] == 4 and protocol["guidance"] == 1.0 and protocol["particles"] == 1


def test_labels_are_named_numbered_or_each(flow_run: Path, command: Command) -> None:
    for label, out in (("3", "a.npz"), ("each", "b.npz")):
        done = command("sample", "run", "--n", 20, "--label", label, "--out", out, cwd=flow_run)
        assert done.returncode == 0, done.stderr
    by_label, each = arrays(flow_run / "a.npz"), arrays(flow_run / "b.npz")
    assert by_label.shape == each.shape == (20, 8, 8, 1)
    assert not np.array_equal(by_label, each)


@pytest.mark.parametrize("setting", [("--label", "3", "--guidance", "2"), ("--evaluations", "1")])
def test_settings_of_samples_have_an_effect(flow_run: Path, command: Command, setting: Any) -> None:
    plain = [*setting[:2]] if setting[0] == "--label" else []
    for given, out in ((plain, "plain.npz"), (setting, "set.npz")):
        assert command("sample", "run", "--n", 4, *given, "--out", out, cwd=flow_run).returncode == 0
    assert not np.array_equal(arrays(flow_run / "plain.npz"), arrays(flow_run / "set.npz"))


MISTAKES = {
    "unknown label": (["run", "--label", "eleven"], "has no class eleven"),
    "guidance without a label": (["run", "--guidance", "2"], "--guidance needs a --label"),
    "negative evaluations": (["run", "--evaluations", "-1"], "--evaluations must be at least 0"),
    "guidance beyond use": (["run", "--label", "1", "--guidance", "1000"], "--guidance must be from 0"),
    "label of a model without": (["checkpoints/digits-ncode-open", "--label", "1"], "was trained without labels"),
    "evaluations of one without": (["checkpoints/digits-ncode-open", "--evaluations", "2"], "has no flow of pixels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_settings_that_a_model_has_not_are_refused(flow_run: Path, command: Command, name: str) -> None:
    given, message = MISTAKES[name]
    done = command("sample", *given, cwd=flow_run)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_a_finished_run_is_tuned_for_few_evaluations(flow_run: Path, command: Command) -> None:
    shutil.copytree(flow_run / "run", flow_run / "tuned")
    done = command("train", "--resume", "tuned", "--observation.reflow", 1, cwd=flow_run)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (flow_run / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["validation_mse_of_one"] > 0


def test_labels_of_images_without_are_refused(flow_run: Path, command: Command) -> None:
    np.savez(flow_run / "plain-set.npz", x_train=np.zeros((40, 8, 8), np.uint8))
    given = ["--data.name", "arrays", "--data.root", "plain-set.npz", "--out", "other"]
    done = command("train", "models/digits/ncode-flow-labels.toml", *given, cwd=flow_run)
    assert done.returncode == 2 and "needs images with labels" in done.stderr.replace("\n", " ")
    done = command(
        "train", "models/digits/ncode-flow-labels.toml", "--data.classes", "a", "b", "--out", "x", cwd=flow_run
    )
    assert done.returncode == 2 and "data.classes must be those of the images" in done.stderr.replace("\n", " ")
