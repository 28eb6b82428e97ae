import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from ncode_gen.config import section
from ncode_gen.data.image_files import fit_channels, images_digest, read_images
from ncode_gen.data.images import TensorImages
from ncode_gen.data.sets import load_data
from ncode_gen.errors import UserError
from ncode_gen.evaluate import main

from .test_trainer import fit, recipe_of

GREY = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def drawn(folder, arrays):
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "write",
    [
        lambda place: saved(place / "a.npz", images=GREY[..., None]),
        lambda place: saved(place / "a.npz", images=GREY, more=np.zeros(3)),
        lambda place: saved(place / "a.npz", any_name=GREY / 255),
        lambda place: saved(place / "a.npz", images=(GREY / np.float32(255)).astype(np.float32)),
        lambda place: drawn(place / "a", GREY),
    ],
    ids=["bytes", "one of two", "float64", "float32", "pictures"],
)
def test_images_are_read_as_they_were(tmp_path: Path, write: Any) -> None:
    pixels = read_images(write(tmp_path)).pixels
    assert pixels.dtype == torch.uint8 and torch.equal(pixels, torch.from_numpy(GREY).unsqueeze(1))


def test_an_array_alone_is_read_too(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.stack([GREY] * 3, -1))
    assert read_images(tmp_path / "a.npz").shape == (3, 4, 4)


def test_grey_images_in_colour_are_taken_as_grey_where_grey_is_asked_for(tmp_path: Path) -> None:
    found = read_images(drawn(tmp_path / "a", np.stack([GREY] * 3, -1)))
    assert found.shape == (3, 4, 4)
    assert torch.equal(fit_channels(found, 1).pixels, torch.from_numpy(GREY).unsqueeze(1))
    assert fit_channels(found, 3) is found
    found.pixels[0, 1, 0, 0] += 1
    assert fit_channels(found, 1) is found


MISTAKES = {
    "missing": (lambda place: place / "none.npz", "there is no file .*none.npz"),
    "no archive": (lambda place: _junk(place / "a.npz"), "holds no arrays that can be read"),
    "objects": (lambda place: saved(place / "a.npz", images=np.array([{}])), "holds no arrays that can be read"),
    "two arrays": (
        lambda place: saved(place / "a.npz", a=GREY, b=GREY),
        r"holds 2 arrays \(a, b\), none of them called images",
    ),
    "five channels": (lambda place: saved(place / "a.npz", a=np.zeros((2, 5, 8, 8))), r"\(n, H, W, C\) .* got an arr"),
    "none": (lambda place: saved(place / "a.npz", a=np.zeros((0, 8, 8))), "got an array"),
    "integers": (lambda place: saved(place / "a.npz", a=np.full((2, 8, 8), 256)), "from 256.0 to 256.0"),
    "text": (lambda place: saved(place / "a.npz", a=np.full((2, 8, 8), "x")), "whole or floating-point"),
    "damaged": (lambda place: _spoiled(place / "a.npz"), "holds no arrays that can be read"),
    "range": (lambda place: saved(place / "a.npz", a=np.full((2, 8, 8), 1.5)), "values from 1.5 to 1.5"),
    "NaN": (lambda place: saved(place / "a.npz", a=np.full((2, 8, 8), np.nan)), "without NaN"),
    "no pictures": (lambda place: place, "holds 0 pictures"),
    "not square": (lambda place: drawn(place / "a", np.zeros((1, 4, 5), np.uint8)), "0.png is 5 x 4 pixels"),
    "broken picture": (
        lambda place: _junk(drawn(place / "a", GREY) / "5.png").parent,
        "5.png is not a readable picture",
    ),
}


def _spoiled(path):
    """A compressed archive with a byte changed where the numbers are."""
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
MEANT: dict[str, tuple[dict[str, Any], str | None]] = {
    "guided-diffusion": ({"arr_0": COLOUR, "arr_1": np.arange(5)}, "arr_0 is taken for the images, arr_1 is not used"),
    "labels of one-hot rows": ({"x": COLOUR, "y": np.eye(5)}, "x is taken for the images"),
    "a hair above one": ({"images": np.clip(COLOUR / 255, 0, 1) * (1 + 1e-6)}, "are clipped to [0, 1]"),
    "a hair below zero": ({"images": COLOUR / 255 - 1e-6}, "are clipped to [0, 1]"),
    "channels first": ({"images": COLOUR.transpose(0, 3, 1, 2)}, "is taken as (n, C, H, W)"),
    "wide whole numbers": ({"images": COLOUR.astype(np.int64)}, None),
    "floats of bytes": ({"images": COLOUR.astype(np.float32)}, "taken to be in [0, 255]"),
    "minus one to one": ({"images": COLOUR / 127.5 - 1}, "taken to be in [-1, 1]"),
    "opaque": (
        {"images": np.concatenate([COLOUR, np.full((5, 6, 6, 1), 255, np.uint8)], -1)}, "taken for opacity"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_taken_with_a_note(tmp_path: Path, name: Any) -> None:
    arrays, note = MEANT[name]
    found = read_images(saved(tmp_path / "a.npz", **arrays))
    difference = found.pixels.int() - torch.from_numpy(COLOUR).permute(0, 3, 1, 2).int()
    assert difference.abs().max() <= 1
    assert any(note in line for line in found.notes) if note else not found.notes


def test_truth_values_are_black_and_white(tmp_path: Path) -> None:
    found = read_images(saved(tmp_path / "a.npz", images=COLOUR[..., 0] > 127))
    assert sorted(found.pixels.unique().tolist()) == [0, 255] and "truth values" in found.notes[0]


def _junk(path):
    path.write_bytes(b"no file of this kind")
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_what_holds_no_images_is_refused_by_name(tmp_path: Path, name: Any) -> None:
    write, printed = MISTAKES[name]
    with pytest.raises(UserError, match=printed):
        read_images(write(tmp_path))


def test_images_of_any_generator_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    test = load_data(section("data", name="digits")).test
    np.savez("own.npz", images=test.pixels.permute(0, 2, 3, 1).numpy())
    main(["own.npz", "--data.name", "digits", "--device", "cpu"])
    found = json.loads((tmp_path / "own-evaluation.json").read_text())
    scores, protocol = found["scores"], found["protocol"]
    assert scores["fid"]["value"] == pytest.approx(0, abs=1e-6) and scores["coverage"]["value"] == 1
    assert protocol["n"] == protocol["images_held"] == protocol["test_images"] == len(test)
    assert protocol["images_digest"] == images_digest(cast(TensorImages, test))
    printed = capsys.readouterr().out
    assert f"FID[digits-classifier, n={len(test)}, test]" in printed and "own-evaluation.json" in printed
    arguments = ["--data.name", "digits", "--n", "100", "--limit", "150", "--quiet", "--device", "cpu", "--out"]
    main(["own.npz", *arguments, "a.json", "--seed", "1"])
    main(["own.npz", *arguments, "b.json", "--seed", "2"])
    few, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert few["protocol"]["n"] == 100 and few["protocol"]["test_images"] == 150
    assert few["scores"] != other["scores"] and few["protocol"]["warnings"]


def test_images_of_another_shape_or_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", images=GREY)
    with pytest.raises(UserError, match=r"images of 4 x 4 x 1 .*, those of digits are 8 x 8 x 1"):
        main(["a.npz", "--data.name", "digits"])
    with pytest.raises(UserError, match=r"add --data\.name: digits, mnist"):
        main(["a.npz"])


def test_a_folder_of_pictures_is_scored_at_the_size_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    drawn(tmp_path / "pictures", random.integers(0, 256, (12, 20, 20, 3), np.uint8))
    drawn(tmp_path / "made", random.integers(0, 256, (6, 16, 16, 3), np.uint8))
    arguments = ["--data.name", "folder", "--data.root", "pictures", "--features", "cifar10-classifier"]
    main(["made", *arguments, "--device", "cpu", "--quiet"])
    assert json.loads((tmp_path / "made-evaluation.json").read_text())["protocol"]["n"] == 6


def test_a_refined_model_is_scored_without_its_refiner_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refiner = section("observation", kind="refined", width=8, epochs=1)
    fit(recipe_of(epochs=1, observation=refiner), tmp_path / "run")
    for name, more in (("with", []), ("without", ["--no-refine"])):
        main(["run", "--n", "150", "--particles", "0", "--quiet", "--device", "cpu", "--out", f"{name}.json", *more])
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("with", "without")}
    assert found["with"]["scores"]["fid"] != found["without"]["scores"]["fid"]
    assert found["with"]["scores"]["mse"] == found["without"]["scores"]["mse"]
    assert found["without"]["protocol"]["refiner"] == "left out" and "refiner" not in found["with"]["protocol"]


def test_the_digest_is_that_of_the_pixels() -> None:
    images = TensorImages(torch.from_numpy(GREY).unsqueeze(1))
    assert images_digest(images) == images_digest(TensorImages(images.pixels.clone()))
    assert images_digest(images) != images_digest(images.head(4))
