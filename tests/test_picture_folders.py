"""Folders as people have them: what is data, how it is split, and what a run keeps of it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ncode_gen.config import section
from ncode_gen.data.picture_folders import find_pictures, split_folders
from ncode_gen.data.sets import load_data
from ncode_gen.data.splits import FileSplit, place_of, split_by_hash
from ncode_gen.errors import UserError

from .conftest import TINY, Command


def paint(path, value=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)


def fill(folder, count):
    for i in range(count):
        paint(folder / f"{i:03d}.png", i)
    return folder


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.paths]


def recipe_of(folder, **options):
    return section("data", name="folder", root=str(folder), size=8, **options)


def test_a_new_picture_moves_no_other(tmp_path: Path) -> None:
    before = load_data(recipe_of(fill(tmp_path, 200))).files
    paint(tmp_path / "000a.png")
    after = load_data(recipe_of(tmp_path)).files
    for part in ("train", "validation", "test"):
        assert set(getattr(after, part)) - {"000a.png"} == set(getattr(before, part))
    assert after.digest != before.digest
    (tmp_path / "100.png").unlink()
    without = load_data(recipe_of(tmp_path)).files
    assert set(without.test) == set(after.test) - {"100.png"}


def test_the_split_is_by_the_relative_path_alone(tmp_path: Path) -> None:
    fill(tmp_path / "a", 40)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    one, other = (load_data(recipe_of(tmp_path / name)).files for name in ("a", "elsewhere/b"))
    assert one == other
    # macOS writes é as e and an accent.
    assert place_of("caf\u00e9.png", "test", 0) == place_of("cafe\u0301.png", "test", 0)
    assert place_of("a.png", "test", 0) != place_of("a.png", "validation", 0)


def test_no_part_is_empty_and_the_share_is_about_right() -> None:
    for count in (2, 3, 9):
        rest, held = split_by_hash([f"{i}.png" for i in range(count)], 0.0, "test", 0)
        assert len(held) == 1 and len(rest) == count - 1
        rest, held = split_by_hash([f"{i}.png" for i in range(count)], 0.99, "test", 0)
        assert rest and held
    _, held = split_by_hash([f"{i}.png" for i in range(10000)], 0.15, "test", 3)
    assert len(held) == pytest.approx(1500, abs=150)


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory, command: Command):
    """A run of forty pictures, and its folder of pictures."""
    place = tmp_path_factory.mktemp("folder_run")
    fill(place / "pictures", 40)
    done = command(
        "train", *TINY, "--data.name", "folder", "--data.root", "pictures", "--data.size", 8, "--training.batch", 16,
        "--prior.components", 1, "--out", "run", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


def copied(folder_run, tmp_path: Path):
    shutil.copytree(folder_run, tmp_path / "place")
    return tmp_path / "place"


SCORES = ("evaluate", "run", "--n", 20, "--particles", 2, "--features", "digits-classifier", "--quiet")


def test_a_run_keeps_its_own_split_when_its_folder_changes(folder_run: Any, tmp_path: Path, command: Command) -> None:
    place = copied(folder_run, tmp_path)
    held = json.loads((place / "run" / "data.json").read_text())
    assert len(held["train"]) + len(held["validation"]) + len(held["test"]) == 40
    trained = held["train"][0]
    for i in range(30):
        paint(place / "pictures" / f"new{i}.png", 255)
    (place / "pictures" / trained).rename(place / "pictures" / "renamed.png")
    recorded = FileSplit.from_record(held, place)
    splits = load_data(recipe_of(place / "pictures"), recorded)
    assert set(splits.files.test) == set(held["test"]) and len(splits.test) == len(held["test"])
    assert "31 are new" in splits.warnings[0] and "1 are gone" in splits.warnings[0]
    for words in (SCORES, ("gallery", "run", "--quiet"), ("train", "--resume", "run", "--training.epochs", 3)):
        done = command(*words, cwd=place)
        assert done.returncode in (0, 2), done.stderr
        assert "are not those of this run: 31 are new" in " ".join(done.stderr.split())
    assert json.loads((place / "run" / "data.json").read_text()) == held


def test_a_run_whose_pictures_are_elsewhere_says_so(folder_run: Any, tmp_path: Path, command: Command) -> None:
    place = copied(folder_run, tmp_path)
    fill(place / "others" / "deep", 9)
    done = command(*SCORES, "--data.root", "others", cwd=place)
    assert done.returncode == 2 and "pictures of this run is in others" in done.stderr
    (place / "pictures").rename(place / "moved")
    done = command("gallery", "run", "--data.root", "moved", cwd=place)
    assert done.returncode == 0 and "warning" not in done.stderr


def test_the_share_of_test_images_of_a_run_cannot_change(
    folder_run: Any, tmp_path: Path, command: Command, trained: Path
) -> None:
    place = copied(folder_run, tmp_path)
    for run, key, value in (("run", "test", 0.5), ("run", "split_seed", 3), (trained, "validation", 0.3)):
        done = command("train", "--resume", run, f"--data.{key}", value, cwd=place)
        assert done.returncode == 2 and f"data.{key} of " in done.stderr and "train from scratch" in done.stderr


def test_a_run_without_a_record_is_split_as_it_was_and_says_so(folder_run: Any, tmp_path: Path) -> None:
    place = copied(folder_run, tmp_path)
    paths = sorted((place / "pictures").iterdir())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    (place / "run" / "data.json").unlink()
    splits = load_data(recipe_of(place / "pictures"), earlier=True)
    assert "holds no record of its pictures" in splits.warnings[0]
    assert sorted(splits.files.test) == sorted(paths[i].name for i in order[:6])  # as version 0.1 held out 15 %


def test_what_the_program_made_is_no_data(folder_run: Any, tmp_path: Path, command: Command) -> None:
    place = copied(folder_run, tmp_path)
    shutil.copytree(place / "run", place / "pictures" / "runs" / "one")
    shutil.copytree(place / "run" / "gallery", place / "pictures" / "gallery")
    done = command("sample", "run", "--n", 3, "--out", "pictures/made/", cwd=place)
    assert done.returncode == 0
    found = find_pictures(place / "pictures", 1)
    assert len(found.paths) == 40
    printed = " ".join(found.notes(place / "pictures"))
    assert "2 folders that this program made" in printed and "3 pictures that this program drew" in printed
    made = place / "pictures" / "made"
    assert len(find_pictures(made, 1, samples=True).paths) == 3  # a draw itself can be scored
    assert len(find_pictures(made, 1).paths) == 3  # and learnt from, where nothing else is there


def test_hidden_files_and_caches_are_no_pictures(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    for name in ("._000.png", ".hidden/a.png", "__MACOSX/a.png", "@eaDir/a.png", ".DS_Store/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7 no picture")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("x")
    found = find_pictures(tmp_path, 1)
    assert len(found.paths) == 4 and found.notes(tmp_path) == []


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", 3)
    root = tmp_path / "root"
    fill(root / "own", 2)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "linked" / "up").symlink_to(root, target_is_directory=True)
    (root / "own" / "loop").symlink_to(root / "own", target_is_directory=True)
    (root / "own" / "self").symlink_to("self")
    (root / "own" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "own" / "file.png").symlink_to(tmp_path / "elsewhere" / "000.png")
    (root / "own" / "another.png").symlink_to(root / "own" / "001.png")
    (tmp_path / "elsewhere" / "sub").mkdir()
    paint(tmp_path / "elsewhere" / "sub" / "deep.png")
    (root / "a").symlink_to(tmp_path / "elsewhere" / "sub", target_is_directory=True)
    found = find_pictures(root, 1)
    assert names(found, root) == [
        *("a/deep.png", "linked/000.png", "linked/001.png", "linked/002.png", "own/000.png", "own/001.png"),
    ]
    printed = " ".join(found.notes(root))
    assert "3 folders that are there already" in printed and "2 links to nothing" in printed
    assert "2 links to pictures that are there already" in printed
    splits = load_data(recipe_of(root))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 6


def test_a_link_gives_no_picture_another_name(tmp_path: Path) -> None:
    before = load_data(recipe_of(fill(tmp_path / "zoo" / "cats", 40).parent)).files
    (tmp_path / "zoo" / "a").symlink_to(tmp_path / "zoo" / "cats", target_is_directory=True)
    assert load_data(recipe_of(tmp_path / "zoo")).files == before


def test_every_ending_that_pillow_reads_is_taken_and_the_rest_is_counted(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for ending in ("png", "JPG", "jpe", "jfif", "bmp", "tga", "ppm", "pbm", "pcx", "sgi", "qoi", "tiff", "webp", "ico",
                   "dib", "im", "icns", "dds", "jp2"):  # fmt: skip
        kept = image.resize((16, 16)).convert("1") if ending == "pbm" else image.resize((16, 16))
        kept.save(tmp_path / f"a.{ending}")
    for name in ("a.heic", "b.heic", "noending", "video.mp4", "page.pdf", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = find_pictures(tmp_path, 1)
    assert len(found.paths) == 19
    assert any("5 files whose ending is no picture's (2 .heic" in line for line in found.notes(tmp_path))
    splits = load_data(recipe_of(tmp_path))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 19
    assert any(".heic" in line for line in splits.notes)
    for path in found.paths:
        path.unlink()
    with pytest.raises(UserError, match=r"holds 0 pictures.*5 files whose ending"):
        find_pictures(tmp_path, 1)


SPLITS = {
    ("train", "test"): ("train", "test", None),
    ("Train", "TEST"): ("Train", "TEST", None),
    ("training", "testing"): ("training", "testing", None),
    ("train", "val"): ("train", "val", None),
    ("train", "valid", "test"): ("train", "test", "valid"),
    ("train", "dev", "tst"): ("train", "tst", "dev"),
}


@pytest.mark.parametrize("folders", SPLITS, ids=" ".join)
def test_the_customary_names_of_splits_are_understood(tmp_path: Path, folders: Any) -> None:
    for number, name in enumerate(folders):
        fill(tmp_path / name, 6 + number)
    splits = load_data(recipe_of(tmp_path))
    train, test, validation = SPLITS[folders]
    assert all(name.startswith(f"{train}/") for name in splits.files.train)
    assert {name.split("/")[0] for name in splits.files.test} == {test}
    assert {name.split("/")[0] for name in splits.files.validation} == {validation or train}
    assert len(splits.test) == 6 + folders.index(test)
    if "val" in folders:
        assert "those of val are used as such" in splits.notes[0]


def test_half_a_split_and_two_of_one_kind_are_reported(tmp_path: Path) -> None:
    fill(tmp_path / "train", 6)
    splits = load_data(recipe_of(tmp_path))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 6
    assert "no folder test or validation" in splits.notes[0]
    fill(tmp_path / "Training", 3)
    fill(tmp_path / "test", 3)
    with pytest.raises(UserError, match="both mean the train pictures"):
        load_data(recipe_of(tmp_path))
    assert split_folders(tmp_path / "test") == ({}, [])


def test_a_folder_that_cannot_be_opened_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 4)
    fill(tmp_path / "locked", 2)
    real = os.scandir

    def scandir(path):  # a mode does not keep root out
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_pictures(tmp_path, 1)
    assert len(found.paths) == 4
    assert found.notes(tmp_path) == [f"left out of {tmp_path}: 1 folders that cannot be opened: locked"]
