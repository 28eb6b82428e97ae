import pytest
import torch
from torch import nn

from ncode_gen.data.images import TensorImages
from ncode_gen.distributions import LatentModel, Pixelwise
from ncode_gen.distributions.likelihoods import Gaussian
from ncode_gen.distributions.posterior import GaussianPosterior
from ncode_gen.distributions.priors import StandardNormal
from ncode_gen.metrics import interpolation_score, linear_probe
from ncode_gen.metrics.features import FeatureNetwork


class Pixels(FeatureNetwork):
    name, size, digest = "pixels", 4, "none"

    def batch(self, images):
        return images.flatten(1).float()


def exact():
    """A model whose latents are the four pixels, and whose pictures are the latents' sigmoid."""
    posterior = GaussianPosterior(4, 4, None)
    with torch.no_grad():
        posterior.base.weight.copy_(torch.cat([torch.eye(4), torch.zeros(4, 4)]))
        posterior.base.bias.zero_()
    decoder = nn.Unflatten(1, (1, 2, 2))
    observation = Pixelwise(4, (1, 2, 2), decoder, Gaussian())
    return LatentModel(nn.Flatten(), posterior, observation, StandardNormal(4)).requires_grad_(False)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    pixels = torch.randint(0, 256, (n, 1, 2, 2), generator=generator)
    pixels[:, 0, 0, 0] = torch.where(labels == 1, 200, 50)
    return TensorImages(pixels.byte(), labels)


def test_classes_that_a_latent_shows_are_read() -> None:
    score = linear_probe(exact(), images(300), images(100, 1))
    assert score.value == 1.0


def test_a_probe_needs_labels() -> None:
    with pytest.raises(ValueError, match="labelled"):
        linear_probe(exact(), TensorImages(images(9).pixels), images(9))


def test_a_nearly_straight_path_scores_one() -> None:
    score = interpolation_score(exact(), images(20).first(20), Pixels(), steps=8)
    assert 1.0 <= score.value < 1.05  # pictures are rounded to 8 bits
