"""How near reconstructions are to their originals."""

import torch
from torch import Tensor, nn

from ..data.images import Images
from ..distributions import LatentModel, PixelFlow, Start
from ..runtime.seeding import seeded
from .score import Score, mean_score

WINDOW, SIGMA = 11, 1.5


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity of each pair of images (n, C, H, W) in [0, 1], shape (n,).

    Gaussian window of 11 pixels (the largest odd window that fits, on smaller images) and sigma 1.5, inner part only.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, equation 13.

    >>> image = torch.rand(1, 1, 16, 16)
    >>> structural_similarity(image, image)
    tensor([1.])
    """
    side = min(WINDOW, *(s if s % 2 else s - 1 for s in a.shape[-2:]))
    line = torch.arange(side, dtype=a.dtype, device=a.device) - side // 2
    weights = torch.exp(-(line**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    channels = a.shape[1]
    window = torch.outer(weights, weights).expand(channels, 1, side, side)

    def blurred(image: Tensor) -> Tensor:
        return nn.functional.conv2d(image, window, groups=channels)

    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a**2
    var_b = blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    ratio = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return ratio.flatten(1).mean(1)


@torch.no_grad()
def score_reconstruction(
    model: LatentModel, images: Images, *, stochastic_targets: bool, seed: int = 0, batch: int = 500
) -> dict[str, Score]:
    """Return mean squared error, peak signal-to-noise ratio (dB), structural similarity and distortion.

    The first three compare images in [0, 1] with the decoded mean codes of these images. The distortion is that of
    training: -log p(u | z) in nats of targets u, where z is a sample of the posterior of u (Alemi et al., "Fixing a
    broken ELBO", ICML 2018, section 3); it is left out for a flow of pixels, which needs a solve for it.

    Args:
        model: the model.
        images: the originals.
        stochastic_targets: see `ObjectiveSection.uses_stochastic_targets`.
        seed: seed of targets and codes.
        batch: images at a time; it changes no score.
    """
    generator = seeded(seed)
    errors, similar, distortion = [], [], []
    for originals in images.batches(batch, device=model.device):
        if not isinstance(model.observation, PixelFlow):
            distortion.append(_distortion(model, originals, generator, stochastic_targets).cpu())
        reconstructed = model.reconstruct(originals)
        errors.append(((reconstructed - originals) ** 2).flatten(1).mean(1).cpu())
        similar.append(structural_similarity(reconstructed, originals).cpu())
    error = torch.cat(errors)
    scores = {
        "mse": mean_score(error),
        "psnr": mean_score(-10 * torch.log10(error.clamp_min(1e-12))),
        "ssim": mean_score(torch.cat(similar)),
    }
    return scores | ({"distortion_nats": mean_score(torch.cat(distortion))} if distortion else {})


PROBE = 500


@torch.no_grad()
def score_flow_reconstruction(
    model: LatentModel, images: Images, *, evaluations: int = 32, seed: int = 0
) -> dict[str, Score]:
    """Return how near images of a flow of pixels are to their originals, for the first 500.

    From the code and fresh noise (what the code keeps), and from the code and the image's own noise, found by solving
    backwards with as many evaluations (the full code).

    Args:
        model: a model whose observation is a flow of pixels.
        images: the originals.
        evaluations: of the field, in each direction.
        seed: seed of the fresh noise.
    """
    some = images.first(PROBE, model.device)
    scores = {}
    starts: tuple[Start, ...] = ("fresh", "inverted")
    for name in starts:
        found = model.reconstruct(some, seeded(seed), start=name, evaluations=evaluations)
        error = (found - some).square().flatten(1).mean(1).cpu()
        scores[f"mse_{name}"] = mean_score(error)
        scores[f"psnr_{name}"] = mean_score(-10 * torch.log10(error.clamp_min(1e-12)))
    return scores


def _distortion(model: LatentModel, images: Tensor, generator: torch.Generator, stochastic_targets: bool) -> Tensor:
    """Return -log p(u | z) of images' targets u, shape (n,); random numbers are those of each image."""
    uniforms, noises = [], []
    for _ in images:
        uniforms.append(torch.rand(model.shape, generator=generator))
        noises.append(torch.randn(model.dim, generator=generator))
    uniform = torch.stack(uniforms).to(model.device) if stochastic_targets else None
    target = model.observation.target(images, uniform)
    return -model.observation.log_prob(target, model.sample_posterior(target, noise=torch.stack(noises)))
