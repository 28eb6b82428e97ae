"""Damaged pictures and arrays: each is read, or refused by one message with its name. No other error, hang or crash.

`NCODE_FUZZ_PICTURES` and `NCODE_FUZZ_ARRAYS` say how many are tried.
"""

import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ncode_gen.data.image_files import read_images
from ncode_gen.data.picture_files import picture_endings, read_picture, set_range
from ncode_gen.errors import UserError

from .test_fuzzing import at_most

PICTURES = int(os.environ.get("NCODE_FUZZ_PICTURES", "400"))
ARRAYS = int(os.environ.get("NCODE_FUZZ_ARRAYS", "100"))
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "PA", "RGBX")
SECONDS = 20


def pictures():
    """Return (ending, content) of a small picture in every format and mode that Pillow writes, some with tags."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x8769] = 6, "a description", {0x9003: "2020:01:01 00:00:00"}
    found = []
    for ending in sorted(picture_endings()):
        kind = Image.registered_extensions().get(ending, "MPO")
        for mode in MODES if kind in Image.SAVE else ():
            for options in ({}, {"exif": tags}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}):
                if options and not (kind in ("JPEG", "PNG", "TIFF", "WEBP", "MPO", "AVIF") and mode in ("L", "RGB")):
                    continue
                if "compression" in options and kind != "TIFF":
                    continue
                try:
                    image = Image.fromarray(noise, "RGBA").convert("RGB")
                    image = image.convert("L") if mode in ("I;16", "I;16B", "PA", "LA") else image
                    if mode.startswith("I;16"):
                        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
                    else:
                        image = image.convert(mode)
                    buffer = io.BytesIO()
                    image.save(buffer, format=kind, **options)
                except Exception:  # not every format has every mode
                    continue
                found.append((ending, buffer.getvalue()))
    return found


def damaged(content, dice):
    """Return a damaged copy of a file."""
    spoilt = bytearray(content)
    kind = dice.choice(("cut", "flip", "flips", "head", "zeros", "insert", "drop", "whole"))
    if kind == "cut":
        spoilt = spoilt[: dice.randrange(len(spoilt))]
    elif kind in ("flip", "flips", "head"):
        reach = min(len(spoilt), 200) if kind == "head" else len(spoilt)
        for _ in range({"flip": 1, "flips": 20, "head": 4}[kind]):
            spoilt[dice.randrange(reach)] = dice.randrange(256)
    elif kind == "zeros":
        start = dice.randrange(len(spoilt))
        spoilt[start : start + 16] = bytes(len(spoilt[start : start + 16]))
    elif kind == "insert":
        place = dice.randrange(len(spoilt))
        spoilt[place:place] = dice.randbytes(dice.randrange(1, 9))
    elif kind == "drop":
        place = dice.randrange(len(spoilt))
        del spoilt[place : place + dice.randrange(1, 9)]
    return bytes(spoilt)


def try_pictures(folder, start, count):
    """Read `count` damaged pictures from seed `start` on; return how many were refused."""
    sources, refused = pictures(), 0
    assert len(sources) > 80
    for seed in range(start, start + count):
        dice = random.Random(seed)
        ending, content = sources[seed % len(sources)]
        path = folder / f"{seed}{ending}"
        path.write_bytes(damaged(content, dice))
        print(seed, ending, flush=True)  # where the process ended, if it does
        with at_most(SECONDS):
            try:
                pixels, _ = set_range([path])
                found = read_picture(path, 8, grey=bool(seed % 2), pixels=pixels)
                assert found.dtype == torch.uint8 and found.shape == (1 if seed % 2 else 3, 8, 8)
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error), (seed, ending, str(error))
        path.unlink()
    return refused


def test_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path) -> None:
    """In a process of its own, which a decoder in C might end."""
    script = (
        "import pathlib, sys; from tests.test_picture_fuzzing import try_pictures\n"
        "print('refused', try_pictures(pathlib.Path(sys.argv[1]), 0, int(sys.argv[2])))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(PICTURES)], cwd=root, capture_output=True, text=True,
        check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-100:], done.stderr[-3000:])
    assert int(done.stdout.split()[-1]) > PICTURES / 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_with_tags_is_read_or_refused_at_every_length(tmp_path: Path, kind: str) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, format=kind, exif=tags)
    path = tmp_path / f"a.{kind.lower()}"
    for length in range(len(buffer.getvalue())):
        path.write_bytes(buffer.getvalue()[:length])
        try:
            read_picture(path, 4)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("place", range(12))
def test_broken_tags_leave_the_pixels(tmp_path: Path, place: Any) -> None:
    """A JPEG whose EXIF block is spoilt is a picture all the same."""
    tags = Image.Exif()
    tags[0x0112] = 3
    path = tmp_path / "a.jpg"
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(path, exif=tags)
    content = bytearray(path.read_bytes())
    start = content.index(b"Exif\0\0") + 6
    content[start + place] ^= 0xFF
    path.write_bytes(content)
    assert abs(int(read_picture(path, 8)[0, 4, 4]) - 90) < 3


def test_damaged_arrays_are_read_or_refused_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    sources = []
    for values in (
        noise,
        noise / 255,
        (noise / 255).astype(np.float16),
        noise.astype(np.int32),
        noise > 127,
        noise[..., 0],
    ):
        for save in (np.savez, np.savez_compressed):
            for arrays in ({"images": values}, {"arr_0": values, "arr_1": np.arange(6)}):
                buffer = io.BytesIO()
                save(buffer, **arrays)
                sources.append(buffer.getvalue())
        buffer = io.BytesIO()
        np.save(buffer, values)
        sources.append(buffer.getvalue())
    refused = 0
    for seed in range(ARRAYS):
        path = tmp_path / f"{seed}.npz"
        path.write_bytes(damaged(sources[seed % len(sources)], random.Random(seed)))
        with at_most(SECONDS):
            try:
                found = read_images(path)
                assert found.pixels.dtype == torch.uint8 and len(found) > 0
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error), (seed, str(error))
        path.unlink()
    assert refused > ARRAYS / 10
