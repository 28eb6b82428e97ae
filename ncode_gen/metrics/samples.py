"""How near generated images are to real ones, in the space of a feature network."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import Images
from ..distributions import Adjust, LatentModel
from ..runtime.progress import track
from ..runtime.seeding import seeded
from ..runtime.workers import ALONE, Workers
from .features import FeatureNetwork
from .frechet import frechet_score
from .kernel import kernel_score
from .manifold import density_coverage, precision_recall
from .score import Score

BATCH = 250


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, see `LatentModel.sample`.

    Attributes:
        labels: numbers of the classes, (n,), or None.
        guidance: towards them.
        autoguidance: away from the prior's guide; None for as the recipe says.
        evaluations: of a flow of pixels.
    """

    labels: Tensor | None = None
    guidance: float = 1.0
    autoguidance: float | None = None
    evaluations: int | None = None


def batch_generator(seed: int, number: int) -> torch.Generator:
    """Return the random numbers of one batch: they depend on seed and number alone, not on the process."""
    return seeded(1_000_003 * seed + number)


def sample_features(
    model: LatentModel,
    network: FeatureNetwork,
    n: int,
    *,
    seed: int = 0,
    quiet: bool = False,
    adjust: Adjust | None = None,
    workers: Workers = ALONE,
    refine: bool = True,
    settings: Sampling | None = None,
) -> Tensor:
    """Return the features (n, f) of samples of a model.

    Args:
        model: the model.
        network: the feature network.
        n: number of samples.
        seed: seed of the samples.
        quiet: whether to show no progress.
        adjust: changes the options that the prior's flow is solved with.
        workers: the processes that share the work; all of them get all features.
        refine: see `LatentModel.sample`.
        settings: labels, guidance and evaluations; as the recipe says if None.
    """
    settings = settings or Sampling()
    with track("samples", n, quiet=quiet) as progress:
        found = {}
        for number, start in workers.mine(range(0, n, BATCH)):
            numbers = batch_generator(seed, number)
            count = min(BATCH, n - start)
            labels = None if settings.labels is None else settings.labels[start : start + count]
            images = model.sample(
                count,
                numbers,
                adjust=adjust,
                refine=refine,
                labels=labels,
                guidance=settings.guidance,
                autoguidance=settings.autoguidance,
                evaluations=settings.evaluations,
            )
            found[number] = network.of([images])
            progress.advance(len(images) * workers.count)
    return workers.gather(found)


def image_features(network: FeatureNetwork, images: Images, device: torch.device, workers: Workers = ALONE) -> Tensor:
    """Return the features (n, f) of images; the processes share the work, and all of them get all features."""
    shared = shared_batches(images, BATCH, device, workers)
    return workers.gather({number: network.of([batch]) for number, batch in shared})


def shared_batches(images: Images, size: int, device: torch.device, workers: Workers) -> Iterator[tuple[int, Tensor]]:
    """Yield this process's batches of images with their numbers; no process reads another's images."""
    mine = list(workers.mine(torch.arange(len(images)).split(size)))
    if mine:
        order = torch.cat([indices for _, indices in mine])
        yield from zip((number for number, _ in mine), images.batches(size, order, device), strict=True)


def compare_features(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, Score]:
    """Return Frechet and kernel distance, precision, recall, density and coverage of features (m, f) against (n, f).

    Distances of covariances and of pairs need two features on each side, and are left out for fewer.
    """
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    scores: dict[str, Score] = {}
    if min(len(real), len(fake)) > 1:
        scores = {"fid": frechet_score(real, fake, seed=seed), "kid": kernel_score(real, fake, seed=seed)}
    return scores | {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def distance_device(device: torch.device) -> torch.device:
    """Return where distances of features are best computed: on a CUDA device, else on the CPU, which has float64.

    >>> distance_device(torch.device("mps"))
    device(type='cpu')
    """
    return device if device.type == "cuda" else torch.device("cpu")


def few_images_warning(real: Tensor, fake: Tensor) -> list[str]:
    """Return a warning, if there are too few images for the covariance of their features, else nothing."""
    fewest, size = min(len(real), len(fake)), real.shape[1]
    if fewest < 2:
        return ["fid, kid: undefined for one image; left out"]
    if fewest >= 2 * size:
        return []
    return [
        f"fid: {fewest} images are fewer than twice the {size} features, so its covariance is poorly known; trust kid "
        "instead"
    ]
