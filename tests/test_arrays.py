"""Sets of images in one file of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ncode_gen.config import section
from ncode_gen.data import load_data
from ncode_gen.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(40) % 3


def load(path: Path, **keys: Any) -> Any:
    return load_data(section("data", name="arrays", root=str(path), **keys))


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def test_keras_layout_is_read_bit_for_bit(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=COLOUR, y_train=LABELS[:, None], x_test=COLOUR[:9], y_test=LABELS[:9, None])
    splits = load(path, validation=0.1)
    assert splits.train.shape == (3, 6, 6) and len(splits.train) == 36 and len(splits.test) == 9
    assert splits.classes == ("0", "1", "2")
    assert torch.equal(splits.test.pixels, torch.from_numpy(COLOUR[:9]).permute(0, 3, 1, 2))
    assert splits.test.labels.tolist() == LABELS[:9].tolist()
    pixels = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(torch.from_numpy(COLOUR).permute(0, 3, 1, 2), LABELS, strict=True)
    }
    for image, label in zip(splits.train.pixels, splits.train.labels, strict=True):
        assert pixels[tuple(image.flatten().tolist())] == int(label)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (COLOUR.transpose(0, 3, 1, 2), (3, 6, 6)),
        (COLOUR[..., 0], (1, 6, 6)),
        (COLOUR / 255.0, (3, 6, 6)),
        (COLOUR / 127.5 - 1.0, (3, 6, 6)),
    ],
    ids=["channels first", "grey", "unit range", "symmetric range"],
)
def test_other_layouts_are_read_as_they_are_meant(tmp_path: Path, values: Any, shape: Any) -> None:
    splits = load(saved(tmp_path, x_train=values, x_test=values))
    assert splits.test.shape == shape and splits.train.labels is None and splits.classes == ()
    expected = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)[:, : shape[0]]
    assert torch.equal(splits.test.pixels, expected)


def test_names_and_one_hot_rows_are_labels(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "emu"])
    by_name = load(saved(tmp_path, x_train=COLOUR, y_train=names[LABELS]))
    assert by_name.classes == ("cat", "dog", "emu")
    rows = load(saved(tmp_path, x_train=COLOUR, y_train=np.eye(3)[LABELS], classes=names[::-1]))
    assert rows.classes == ("emu", "dog", "cat")
    assert torch.equal(by_name.train.labels, rows.train.labels)


def test_without_test_images_a_share_is_held_out(tmp_path: Path) -> None:
    splits = load(saved(tmp_path, x_train=COLOUR), test=0.25, validation=0.1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (27, 3, 10)
    seen = {tuple(row.tolist()) for part in (splits.train, splits.test) for row in part.pixels.flatten(1)}
    assert len(seen) == 37


def test_size_and_grey_change_all_parts(tmp_path: Path) -> None:
    splits = load(saved(tmp_path, x_train=COLOUR, x_test=COLOUR), size=4, grey=True)
    assert splits.train.shape == splits.test.shape == (1, 4, 4)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "other names": ({"images": COLOUR}, "no array x_train, only images"),
    "labels of other number": ({"x_train": COLOUR, "y_train": LABELS[:5]}, "40 images x_train but 5 labels y_train"),
    "labels that are none": ({"x_train": COLOUR, "y_train": np.full(40, 0.5)}, "whole numbers or names as labels"),
    "too few names": ({"x_train": COLOUR, "y_train": LABELS, "classes": ["a", "b"]}, "names 2 classes, but its labels"),
    "other test images": ({"x_train": COLOUR, "x_test": COLOUR[..., 0]}, "training images of shape"),
    "not square": ({"x_train": COLOUR[:, :5]}, "6 x 5 pixels; set data.size"),
    "one image": ({"x_train": COLOUR[:1]}, "at least 3"),
    "pickled": ({"x_train": np.array([{}], dtype=object)}, "cannot be read as arrays"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_set_of_arrays_is_named(tmp_path: Path, name: str) -> None:
    arrays, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        load(saved(tmp_path, **arrays))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "none.npz")
    path = saved(tmp_path, x_train=COLOUR)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read as arrays"):
        load(path)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (40, 28, 28), "0 - zero"), ("cifar10", (40, 32, 32, 3), "airplane")],
)
def test_a_known_set_may_lie_in_one_file(tmp_path: Path, name: str, shape: tuple[int, ...], classes: str) -> None:
    pixels, labels = RNG.integers(0, 256, shape, dtype=np.uint8), np.arange(40) % 10
    path = saved(tmp_path, x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    splits = load_data(section("data", name=name, root=str(path)))
    assert splits.classes[0] == classes and len(splits.classes) == 10
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (38, 2, 20)
    same = load(path)  # split as other files of arrays are
    assert torch.equal(splits.train.pixels, same.train.pixels)


def test_a_copy_of_a_known_set_needs_its_test_images(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=COLOUR, y_train=LABELS)
    with pytest.raises(UserError, match="no array x_test, which a copy of cifar10 must hold"):
        load_data(section("data", name="cifar10", root=str(path)))
