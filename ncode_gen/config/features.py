"""The sections of feature networks, which scores are computed with."""

from dataclasses import dataclass
from typing import Any, ClassVar

from .registry import register
from .section import Section


@dataclass(frozen=True)
class FeaturesSection(Section):
    """What FID, KID, precision and recall see of an image; `build` takes a device and a file of weights, or None."""

    section: ClassVar[str] = "features"


@register("auto")
class AutoFeaturesSection(FeaturesSection):
    """The image set's own classifier, else Inception."""


@dataclass(frozen=True)
class ClassifierSection(FeaturesSection):
    """A small classifier that comes with the package."""

    target: ClassVar[str] = "metrics.features:ClassifierFeatures"

    def arguments(self) -> dict[str, Any]:
        """Return the name of the classifier."""
        return {"name": self.kind}


@register("digits-classifier")
class DigitsClassifierSection(ClassifierSection):
    """A classifier of scikit-learn's digits."""


@register("mnist-classifier")
class MnistClassifierSection(ClassifierSection):
    """A classifier of MNIST."""


@register("fashion-classifier")
class FashionClassifierSection(ClassifierSection):
    """A classifier of Fashion-MNIST."""


@register("cifar10-classifier")
class Cifar10ClassifierSection(ClassifierSection):
    """A classifier of CIFAR-10."""


@register("inception")
class InceptionSection(FeaturesSection):
    """The canonical Inception-v3, downloaded."""

    target: ClassVar[str] = "metrics.features:InceptionFeatures"


@register("efficientnet-lite0")
class EfficientNetSection(FeaturesSection):
    """EfficientNet-Lite0, whose weights come as a Python package."""

    target: ClassVar[str] = "metrics.features:EfficientNetFeatures"
