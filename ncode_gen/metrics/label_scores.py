"""How well samples are of the class that they were asked for."""

import torch
from torch import Tensor

from ..data.images import Images
from .features import ClassifierFeatures, FeatureNetwork
from .frechet import frechet_score
from .score import Score

LEAST, KNOWN = 2, 0.5


def score_labels_of_samples(
    network: FeatureNetwork, real: Tensor, fake: Tensor, test: Images, labels: Tensor
) -> dict[str, Score]:
    """Return the share of samples that a classifier takes for their label, and the mean FID within classes.

    Args:
        network: the feature network; where it is a classifier that knows most test images' class, there is an accuracy,
            on samples and, to compare with, on the test images.
        real: features of the test images, (m, f).
        fake: features of samples, (n, f).
        test: the test images, with labels, or without.
        labels: classes of the samples, (n,).
    """
    known = test.labels
    scores: dict[str, Score] = {}
    classes = int(labels.max()) + 1
    if isinstance(network, ClassifierFeatures) and network.classes == classes and known is not None:
        on_test = _accuracy(network, real, known)
        if on_test.value > KNOWN:  # else it is a classifier of other classes
            scores |= {"label_accuracy": _accuracy(network, fake, labels), "label_accuracy_test": on_test}
    if known is not None:
        each = []
        for number in range(classes):
            own, others = real[known == number].double(), fake[labels == number].double()
            if min(len(own), len(others)) > LEAST:
                each.append(frechet_score(own, others).value)
        if each:
            values = torch.tensor(each, dtype=torch.float64)
            error = float(values.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
            scores["label_fid"] = Score.from_error(float(values.mean()), error)
    return scores


def _accuracy(network: ClassifierFeatures, features: Tensor, labels: Tensor) -> Score:
    right = network.classify(features) == labels.cpu()
    return Score.of_share(float(right.double().mean()), len(right))
