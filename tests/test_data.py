import dataclasses
import gzip
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ncode_gen.config import section
from ncode_gen.data import decoded
from ncode_gen.data import sets as data
from ncode_gen.data.images import TensorImages
from ncode_gen.data.picture_files import read_picture
from ncode_gen.data.sets import load_data
from ncode_gen.errors import UserError

from .conftest import ROOT


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path: Path):
    """A folder of pictures of many sizes, modes and formats."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(noise(40, 60, 3)).save(folder / "a.png")
    Image.fromarray(noise(33, 20, 3)).save(folder / "b.JPG", format="JPEG")
    Image.fromarray(noise(50, 50)).save(folder / "deep" / "grey.png")
    Image.fromarray(noise(50, 50, 4)).save(folder / "deep" / "alpha.png")
    Image.fromarray(noise(50, 51, 3)).convert("P").save(folder / "palette.gif")
    Image.fromarray(noise(20, 30).astype(np.uint16) * 257).save(folder / "deep16.png")
    Image.fromarray(noise(9, 9, 3)).convert("CMYK").save(folder / "cmyk.jpeg")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_of_mixed_pictures_becomes_one_tensor(pictures: Any) -> None:
    splits = load_data(section("data", name="folder", root=str(pictures), size=16))
    assert splits.train.shape == (3, 16, 16)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 7
    assert load_data(section("data", name="folder", root=str(pictures), grey=True)).train.shape == (1, 32, 32)


def test_folders_train_and_test_are_the_split(tmp_path: Path) -> None:
    for part, count in (("train", 9), ("test", 3), ("elsewhere", 5)):
        (tmp_path / part / "deep").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), {"train": "red", "test": "lime", "elsewhere": "blue"}[part]).save(
                tmp_path / part / "deep" / f"{i}.png"
            )
    splits = load_data(section("data", name="folder", root=str(tmp_path), size=8, validation=0.2))
    assert len(splits.train) + len(splits.validation) == 9 and len(splits.validation) > 0 and len(splits.test) == 3
    assert "not elsewhere" in splits.notes[0]
    for images, channel in ((splits.train, 0), (splits.validation, 0), (splits.test, 1)):
        means = torch.cat(list(images.batches(9))).mean((0, 2, 3))
        assert means.argmax() == channel and means.sum() == 1
    assert splits.train.labels is None  # one folder is no class
    for path in (tmp_path / "test" / "deep").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="test holds 0 pictures"):
        load_data(section("data", name="folder", root=str(tmp_path)))


def test_class_folders_give_labels_and_no_order(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("test", 10)):
        for name, colour in (("a", "red"), ("b", "lime")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), colour).save(tmp_path / part / name / f"{i}.png")
    splits = load_data(section("data", name="folder", root=str(tmp_path), size=8, limit=16))
    for images in (splits.train, splits.test):
        means = torch.cat(list(images.batches(50))).mean((2, 3))
        assert torch.equal(means[:, :2].argmax(1), images.labels)
        assert len(images.labels[:10].unique()) == 2
    assert load_data(section("data", name="folder", root=str(tmp_path), size=8, limit=1)).train.labels is not None
    (tmp_path / "test" / "a").rename(tmp_path / "test" / "c")
    assert load_data(section("data", name="folder", root=str(tmp_path), size=8)).test.labels is None


def test_a_folder_too_large_for_memory_is_decoded_once_with_the_same_pixels(
    pictures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = section("data", name="folder", root=str(pictures), size=16)
    held = load_data(recipe)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for workers in (0, 2):
        mapped = load_data(dataclasses.replace(recipe, workers=workers))
        assert type(mapped.train).__name__ == "MappedImages" and mapped.notes == held.notes
        for part in ("train", "validation", "test"):
            one, other = getattr(mapped, part), getattr(held, part)
            assert len(one) == len(other) and torch.equal(one.first(9), other.first(9))
        order = torch.tensor([2, 0])
        assert torch.equal(next(mapped.train.head(5).batches(2, order)), held.train.first(9)[order])
        # From here on no picture is decoded.
        monkeypatch.setattr(data, "read_picture", None)
    assert len(list((tmp_path / "cache").rglob("*.bytes"))) == 1


def test_a_picture_that_changes_is_decoded_again(
    pictures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = section("data", name="folder", root=str(pictures), size=16)
    before = torch.cat(list(load_data(recipe).train.batches(4)))
    for path in pictures.rglob("*.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
    after = torch.cat(list(load_data(recipe).train.batches(4)))
    assert before.shape == after.shape and not torch.equal(before, after)
    assert len(list((tmp_path / "cache").rglob("*.bytes"))) == 2


@pytest.mark.parametrize("hindrance", ["no folder", "no room"])
def test_without_a_cache_large_folders_are_streamed_with_the_same_pixels(
    pictures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hindrance: str
) -> None:
    recipe = section("data", name="folder", root=str(pictures), size=16)
    held = load_data(recipe)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("file" if hindrance == "no folder" else "cache")))
    if hindrance == "no room":
        monkeypatch.setattr(decoded, "LARGEST_SHARE", 0)
    for workers in (0, 2):
        streamed = load_data(dataclasses.replace(recipe, workers=workers))
        assert type(streamed.train).__name__ == "FolderImages" and any("no room" in note for note in streamed.notes)
        torch.testing.assert_close(streamed.train.first(9), held.train.first(9))
        order = torch.tensor([2, 0])
        torch.testing.assert_close(next(streamed.train.batches(2, order)), held.train.first(9)[order])


def test_a_broken_picture_is_named_when_streamed_too(pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setattr(decoded, "LARGEST_SHARE", 0)
    recipe = section("data", name="folder", root=str(pictures), size=16)
    for name in ("a.png", "palette.gif", "deep/alpha.png"):
        (pictures / name).write_bytes(b"broken")
    with pytest.raises(UserError, match="not a readable picture"):
        splits = load_data(recipe)
        for part in (splits.train, splits.validation, splits.test):
            list(part.batches(4))


def test_values_survive_reading(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (10, 128, 255)).save(tmp_path / "flat.png")
    assert read_picture(tmp_path / "flat.png", 4)[:, 0, 0].tolist() == [10, 128, 255]
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png", 4).min() == 255
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", 4, grey=True).unique().tolist() == [round(40000 / 257)]


def test_the_orientation_tag_is_obeyed(tmp_path: Path) -> None:
    image = Image.new("L", (20, 10), 0)
    image.paste(255, (0, 0, 10, 10))
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=tags)
    turned = read_picture(tmp_path / "turned.png", 8, grey=True)[0]
    assert turned[0].float().mean() > 200 and turned[-1].float().mean() < 50


def test_splits_do_not_overlap_and_are_the_same_every_time() -> None:
    recipe = section("data", name="digits", validation=0.2, test=0.3)
    one, two = load_data(recipe), load_data(recipe)
    assert torch.equal(one.train.pixels, two.train.pixels)
    assert len(one.train) + len(one.validation) + len(one.test) == 1797
    other = load_data(section("data", name="digits", validation=0.2, test=0.3, split_seed=1))
    assert not torch.equal(one.test.pixels, other.test.pixels)


def test_the_number_of_images_can_be_limited() -> None:
    splits = load_data(section("data", name="digits", limit=50))
    assert len(splits.train) == 50 and len(splits.train.head(7)) == 7 and len(splits.test.head(10**6)) == 270


def test_batches_are_floats_in_the_unit_interval() -> None:
    images = TensorImages(torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1))
    assert torch.cat(list(images.batches(2))).flatten().tolist() == [0, pytest.approx(128 / 255), 1]


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_torchvisions_layout_is_read(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", noise(count, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", noise(count) % 10)
    splits = load_data(section("data", name=name, root=str(tmp_path), validation=0.25))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 10)
    small = load_data(section("data", name=name, root=str(tmp_path), size=14))
    assert small.train.shape == (1, 14, 14)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", noise(40, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", noise(40) % 10)
    cut = raw / "train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        load_data(section("data", name="mnist", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10", "celeba"])
def test_a_set_that_cannot_be_had_names_the_expected_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import urllib.request

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    with pytest.raises(UserError, match=r"could not be downloaded .* --data\.root") as error:
        load_data(section("data", name=name, root=str(tmp_path)))
    assert str(tmp_path) in str(error.value)


def test_the_real_mnist_is_read() -> None:
    root = os.environ.get("NCODE_DATA", str(ROOT / "data"))
    if "NCODE_DATA" not in os.environ and not os.path.isdir(os.path.join(root, "MNIST")):
        pytest.skip("no MNIST in data/; NCODE_DATA names another folder")
    splits = load_data(section("data", name="mnist", root=root))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (57000, 3000, 10000)
    assert splits.test.first(10000).mean().item() == pytest.approx(0.1325, abs=5e-4)


def test_gzip_files_of_a_distribution_are_unpacked(tmp_path: Path) -> None:
    """Debian's package holds the compressed files; torchvision takes them if the checksum is known."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(b"not the real ones")
    with pytest.raises(UserError, match="fashion-mnist"):
        load_data(section("data", name="fashion-mnist", root=str(tmp_path)))


def test_colour_sets_of_torchvision_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's real files carry checksums, so a stand-in with the same attributes takes their place."""
    from torchvision import datasets

    def stand_in(root, train, download):
        count = 40 if train else 10
        return SimpleNamespace(data=noise(count, 32, 32, 3), targets=[i % 10 for i in range(count)])

    monkeypatch.setattr(datasets, "CIFAR10", stand_in)
    splits = load_data(section("data", name="cifar10", validation=0.25))
    assert splits.train.shape == (3, 32, 32) and len(splits.train) == 30 and len(splits.test) == 10
    assert torch.equal(splits.test.pixels[0], torch.from_numpy(noise(10, 32, 32, 3)[0]).permute(2, 0, 1))
    assert load_data(section("data", name="cifar10", grey=True, size=16)).train.shape == (1, 16, 16)


def test_faces_are_read_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(noise(218, 178, 3)).save(folder / f"{i:06d}.jpg")

    def stand_in(root, split, download):
        names = [f"{i:06d}.jpg" for i in (range(8) if split == "train" else range(8, 12))]
        return SimpleNamespace(root=root, base_folder="celeba", filename=names)

    monkeypatch.setattr(datasets, "CelebA", stand_in)
    splits = load_data(section("data", name="celeba", root=str(tmp_path), validation=0.25))
    assert splits.train.shape == (3, 64, 64)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 4)
