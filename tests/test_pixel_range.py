"""Depth of pixels: one rule for a set, printed once, and a key to set it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncode_gen.config import Recipe, section
from ncode_gen.data.image_files import read_images
from ncode_gen.data.picture_files import read_picture, set_range
from ncode_gen.data.pixel_range import PixelRange
from ncode_gen.data.sets import load_data
from ncode_gen.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def write_colour16(path, values):
    """A PNG of 16-bit colours, which Pillow cannot write."""
    import struct
    import zlib

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def deep(path, values):
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_usual_depths_in_16_bits_are_as_bright_as_in_8(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    path = deep(tmp_path / "a.png", np.round(RAMP * top).astype(np.uint16))
    found = read_picture(path, 8, grey=True, pixels=set_range([path])[0])[0]
    assert (found.int() - torch.from_numpy(np.round(RAMP * 255)).int()).abs().max() <= 1


def test_two_scans_keep_their_relation(tmp_path: Path) -> None:
    paths = [deep(tmp_path / f"{top}.png", np.full((8, 8), top, np.uint16)) for top in (250, 260)]
    pixels, printed = set_range(paths)
    dark, bright = (int(read_picture(path, 8, grey=True, pixels=pixels).max()) for path in paths)
    assert 0 <= bright - dark <= 4 and dark > 50
    assert len(printed) == 1 and "2 of 2 pictures have more than 8 bits" in printed[0] and "250 to 260" in printed[0]


@pytest.mark.parametrize(
    ("low", "high", "black", "white"),
    [(0, 1, 0, 1), (0, 1.01, 0, 1), (0.2, 0.4, 0, 1), (-1, 1, -1, 1), (-0.01, 1.0, 0, 1), (0, 255, 0, 255),
     (0, 255.5, 0, 1023), (0, 4095, 0, 4095), (0, 5.5, 0, 5.5), (0, 1e6, 0, 1e6)],
)  # fmt: skip
def test_floating_point_pictures_keep_their_grey(
    tmp_path: Path, low: float, high: float, black: int, white: float
) -> None:
    values = (low + RAMP * (high - low)).astype(np.float32)
    path = deep(tmp_path / "a.tif", values)
    pixels, printed = set_range([path])
    assert pixels.black == black and pixels.white == pytest.approx(white)
    expected = np.clip(np.round(255 * (values.astype(np.float64) - black) / (white - black)), 0, 255)
    found = read_picture(path, 8, grey=True, pixels=pixels)[0]
    assert (found.int() - torch.from_numpy(expected).int()).abs().max() <= 1
    assert ("values outside are clipped" in printed[0]) == (high > white * 1.0001 or low < black)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_of_16_bits_are_read_whole(tmp_path: Path, channels: int) -> None:
    values = np.full((8, 8, channels), 2048, np.uint16)
    values[0, 0] = 4095
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    write_colour16(tmp_path / "a.png", values)
    pixels, _ = set_range([tmp_path / "a.png"])
    assert pixels == PixelRange(0, 4095)
    assert read_picture(tmp_path / "a.png", 8, pixels=pixels)[:, 4, 4].tolist() == [128, 128, 128]
    if channels in (2, 4):
        values[4:, :, -1] = 0
        write_colour16(tmp_path / "a.png", values)
        assert read_picture(tmp_path / "a.png", 8, pixels=pixels)[:, 6, 4].tolist() == [255, 255, 255]


def test_the_range_can_be_set_and_what_is_clipped_is_counted(tmp_path: Path) -> None:
    for i in range(6):
        deep(tmp_path / f"{i}.png", np.full((8, 8), 1000 + i, np.uint16))
    recipe = section("data", name="folder", root=str(tmp_path), size=8, grey=True, range=(0.0, 1003.0))
    splits = load_data(recipe)
    values = torch.cat([part.pixels for part in (splits.train, splits.validation, splits.test)])
    assert sorted(values.unique().tolist()) == [254, 255]
    assert f"{2 * 64} values outside are clipped" in splits.notes[0]
    assert splits.files.pixels == PixelRange(0, 1003)


def test_a_run_keeps_the_range_that_it_learnt_with(tmp_path: Path) -> None:
    for i in range(6):
        deep(tmp_path / f"{i}.png", np.full((8, 8), 1000, np.uint16))
    recipe = section("data", name="folder", root=str(tmp_path), size=8, grey=True)
    before = load_data(recipe)
    deep(tmp_path / "bright.png", np.full((8, 8), 60000, np.uint16))
    after = load_data(recipe, before.files)
    assert torch.equal(before.test.pixels, after.test.pixels) and after.files.pixels == PixelRange(0, 1023)


def test_pictures_of_8_bits_are_left_alone(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 20, np.uint8)).save(tmp_path / "a.png")
    deep(tmp_path / "b.png", np.full((8, 8), 4000, np.uint16))
    pixels, printed = set_range([tmp_path / "a.png", tmp_path / "b.png"])
    assert read_picture(tmp_path / "a.png", 8, pixels=pixels).unique().tolist() == [20]
    assert "1 of 2 pictures" in printed[0]
    assert set_range([tmp_path / "a.png"]) == (None, [])


def test_samples_of_other_programs_follow_the_same_rule(tmp_path: Path) -> None:
    for top in (250, 260):
        deep(tmp_path / f"{top}.png", np.full((8, 8), top, np.uint16))
    found = read_images(tmp_path)
    assert (found.pixels[1] - found.pixels[0]).max() <= 4 and "data.range" in found.notes[0]


@pytest.mark.parametrize("value", ["[1]", "[2, 1]", "[0, nan]", "[0, inf]", "[1, 1]", '"a"', '["a", "b"]', "3"])
def test_another_range_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(f'[data]\nname = "folder"\nrange = {value}\n')
    with pytest.raises(UserError, match=r"data.range must be"):
        Recipe.load(file)
    file.write_text('[data]\nname = "folder"\nrange = [0, 4095]\n')
    assert Recipe.load(file).data.range == (0.0, 4095.0)
    again = tmp_path / "again.toml"
    again.write_text(Recipe.load(file).to_toml())
    assert Recipe.load(again) == Recipe.load(file)
