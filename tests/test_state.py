"""A state of training: kept, checked, and gone on from exactly."""

import errno
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.errors import UserError
from ncode_gen.runfolder.state import PREVIOUS, STATE, is_locked, load_state, locked, save_state
from ncode_gen.runtime.seeding import random_states, restore_random_states
from ncode_gen.runtime.signals import Interrupted
from ncode_gen.training import loop as trainer
from ncode_gen.training.step import Step

from .test_trainer import fit, recipe_of, rows_of


def interrupted_at(step, number=signal.SIGTERM):
    """Return a `Step.__call__` during whose `step`-th call a signal comes."""
    real, taken = Step.__call__, 0

    def call(self, *inputs):
        nonlocal taken
        taken += 1
        if taken == step:
            signal.raise_signal(number)
        return real(self, *inputs)

    return call


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path, {"weights": torch.arange(3.0), "at": {"step": 7, "names": ["a", None]}})
    state = load_state(tmp_path)
    assert torch.equal(state["weights"], torch.arange(3.0)) and state["at"] == {"step": 7, "names": ["a", None]}
    assert state.notice == "" and load_state(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:70] + bytes([b[70] ^ 1]) + b[71:], lambda b: b""])
def test_a_damaged_state_is_reported_and_the_one_before_is_used(tmp_path: Path, spoil: Any) -> None:
    for step in (1, 2):
        save_state(tmp_path, {"step": step})
    path = tmp_path / STATE
    path.write_bytes(spoil(path.read_bytes()))
    state = load_state(tmp_path)
    assert state["step"] == 1
    assert f"{path} is damaged" in state.notice and str(tmp_path / PREVIOUS) in state.notice
    (tmp_path / PREVIOUS).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"remove .* to train from the beginning"):
        load_state(tmp_path)


def test_a_kill_between_the_two_moves_leaves_the_state_before(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 1})
    (tmp_path / STATE).rename(tmp_path / PREVIOUS)
    assert load_state(tmp_path)["step"] == 1


def test_a_state_that_could_execute_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    save_state(tmp_path, {"model": Evil()})
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_random_generators_go_on_where_they_were() -> None:
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.gauss(0, 1) for _ in range(3)]

    random.gauss(0, 1)
    states = random_states()
    first = draws()
    restore_random_states(states)
    assert draws() == first


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    left = tmp_path / "state" / ".training.pt.1.partial"
    with locked(tmp_path):
        with pytest.raises(UserError, match="another process is training"), locked(tmp_path):
            pass
        left.write_text("half")
    with locked(tmp_path):
        assert not left.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def unsupported(file: int, operation: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        with locked(tmp_path):
            assert (tmp_path / "state").is_dir()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"flow": section("flow", loop="closed", hidden=8, grid="random", steps=2)},
        {"training": {"precision": "bf16"}},
    ],
    ids=str,
)
def test_two_halves_are_a_whole_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: Any) -> None:
    recipe = recipe_of(epochs=4, **sections)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    for step in (3, 6):  # in the middle of an epoch, twice
        with monkeypatch.context() as patched:
            patched.setattr(Step, "__call__", interrupted_at(step))
            with pytest.raises(Interrupted) as stopped:
                fit(recipe, tmp_path / "cut", resume=step > 3)
        assert stopped.value.code == 143
    assert same(whole, fit(recipe, tmp_path / "cut", resume=True).state_dict())
    for key in ("step", "loss", "train_nats", "validation_nats", "gradient_norm"):
        assert [row[key] for row in rows_of(tmp_path / "cut")] == [row[key] for row in rows_of(tmp_path / "whole")]


@pytest.mark.parametrize("objective", ["elbo", "autoencoder"])
def test_two_halves_of_a_refiner_are_a_whole_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    sections = {
        "objective": section("objective", kind=objective),
        "prior": section("prior", kind="mixture", components=2),
    }
    recipe = recipe_of(epochs=1, observation=section("observation", kind="refined", width=8, epochs=2), **sections)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    for step in (2, 3, 2):  # in the model's epoch, in the refiner's first one, in its second one
        with monkeypatch.context() as patched:
            patched.setattr(Step, "__call__", interrupted_at(step))
            with pytest.raises(Interrupted):
                fit(recipe, tmp_path / "cut", resume=(tmp_path / "cut").exists())
    assert load_state(tmp_path / "cut")["phases"].keys() == {"model", "observation"}
    assert same(whole, fit(recipe, tmp_path / "cut", resume=True).state_dict())
    for key in ("step", "flow_matching", "validation_flow_matching"):
        cut, uncut = (
            [row.get(key) for row in rows_of(tmp_path / name) if row["epoch"] > 1] for name in ("cut", "whole")
        )
        assert cut == uncut and None not in cut


def test_two_halves_of_a_prior_are_a_whole_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = section("prior", kind="flow", components=2, hidden=8, layers=1, iterations=12)
    recipe = recipe_of(epochs=1, prior=prior)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    for step in (3, 5, 2, 6):  # in the model's epoch, then in the prior's updates
        with monkeypatch.context() as patched:
            patched.setattr(Step, "__call__", interrupted_at(step))
            with pytest.raises(Interrupted):
                fit(recipe, tmp_path / "cut", resume=(tmp_path / "cut").exists())
    assert load_state(tmp_path / "cut")["phases"]["prior"]["progress"]["seen"] == 12
    assert same(whole, fit(recipe, tmp_path / "cut", resume=True).state_dict())
    again = fit(recipe, tmp_path / "cut", resume=True).state_dict()  # nothing is left to be done
    assert same(whole, again)


def test_training_leaves_the_random_generators_and_settings_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before, precision = random_states(), torch.get_float32_matmul_precision()
    fit(recipe_of(epochs=1), tmp_path)
    after = random_states()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert torch.get_float32_matmul_precision() == precision


def test_states_are_saved_in_long_epochs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Step, "__call__", interrupted_at(3, signal.SIGINT))
    with pytest.raises(Interrupted) as stopped:
        fit(recipe_of(), tmp_path)
    assert stopped.value.code == 130
    assert load_state(tmp_path)["phases"]["model"]["progress"]["batches"] == 3
    (tmp_path / STATE).unlink()
    assert load_state(tmp_path)["phases"]["model"]["progress"]["batches"] == 2


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self, *inputs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Step, "__call__", twice)
    with pytest.raises(Interrupted):
        fit(recipe_of(), tmp_path)


def test_training_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    thread = threading.Thread(target=fit, args=(recipe_of(epochs=1), tmp_path))
    thread.start()
    thread.join()
    assert (tmp_path / "weights.safetensors").exists()


def test_a_run_without_a_state_starts_from_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit(recipe_of(), tmp_path / "whole").state_dict()
    again = fit(recipe_of(), tmp_path / "new", resume=True).state_dict()
    assert same(whole, again)
    assert "starts from the beginning" in " ".join(capsys.readouterr().err.split())


def pixel_flow_recipe(**observation: Any) -> Recipe:
    """Return a recipe of a flow of pixels with labels, mirrored images, a deep prior and tuning."""
    return Recipe.from_dict(
        {
            "data": {"limit": 128, "flip": True, "classes": ["auto"]},
            "latent": {"dim": 32, "side": 4},
            "encoder": {"kind": "map", "width": 8, "features": 128},
            "flow": {"loop": "none"},
            "observation": {"kind": "flow", "width": 8, "middle": 1, "hidden": 8, "steps": 1, **observation},
            "objective": {"kind": "matching", "likelihood": 0.25},
            "prior": {"kind": "deep-flow", "width": 8, "layers": 1, "iterations": 6, "batch": 32, "guide": 4},
            "training": {"epochs": 2, "batch": 32, "ema_images": 100},
        }
    )


def test_parts_of_a_flow_of_pixels_are_a_whole_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = pixel_flow_recipe(reflow=2)
    whole = fit(recipe, tmp_path / "whole").state_dict()
    for step in (2, 5, 3, 5, 2):  # in both epochs of the model, then in the prior, then in the tuning
        with monkeypatch.context() as patched:
            patched.setattr(Step, "__call__", interrupted_at(step))
            with pytest.raises(Interrupted):
                fit(recipe, tmp_path / "cut", resume=(tmp_path / "cut").exists())
    assert load_state(tmp_path / "cut")["phases"].keys() == {"model", "prior", "reflow"}
    assert same(whole, fit(recipe, tmp_path / "cut", resume=True).state_dict())


def test_tuning_of_a_finished_flow_of_pixels_changes_the_flow_alone(tmp_path: Path) -> None:
    before = fit(pixel_flow_recipe(), tmp_path).state_dict()
    after = fit(pixel_flow_recipe(reflow=1), tmp_path, resume=True).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("observation.flow.") for name in changed)


def test_a_state_holds_every_number_of_a_model(tmp_path: Path) -> None:
    """What a phase leaves out of its state would have its first value again in a run that is resumed."""
    model = fit(pixel_flow_recipe(), tmp_path)
    held = load_state(tmp_path)["phases"]
    names = {f"{path}.{name}" for phase in held.values() for path, part in phase["average"].items() for name in part}
    assert names == set(model.state_dict())
