"""What a latent space is good for: how well classes are read from it, how straight its interpolations look."""

import torch
from torch import Tensor

from ..data.images import Images
from ..distributions import LatentModel
from ..runtime.seeding import seeded
from .features import FeatureNetwork
from .score import Score, mean_score

PROBED = 10000


def linear_probe(model: LatentModel, train: Images, test: Images, seed: int = 0) -> Score:
    """Return the test accuracy of a logistic regression on the latents of labelled images.

    At most 10,000 training images are used; latents are standardised; the penalty is scikit-learn's default.

    Raises:
        ValueError: images without labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train.labels is None or test.labels is None:
        raise ValueError("a linear probe needs labelled images")
    chosen = torch.randperm(len(train), generator=seeded(seed))[:PROBED]

    def latents(images: Images, order: Tensor | None = None) -> Tensor:
        batches = images.batches(500, order, model.device)
        return torch.cat([model.encode(batch).cpu() for batch in batches]).double()

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(latents(train, chosen).numpy(), train.labels[chosen].numpy())
    right = float(probe.score(latents(test).numpy(), test.labels.numpy()))
    return Score.of_share(right, len(test))


@torch.no_grad()
def interpolation_score(
    model: LatentModel, images: Tensor, network: FeatureNetwork, *, pairs: int = 200, steps: int = 16
) -> Score:
    """Return the path-length ratio of interpolations: path over straight line in feature space; 1 is straight.

    Latents of successive images are joined by a line of `steps` parts, whose decoded images' features make the path.

    Args:
        model: the model.
        images: (n, C, H, W) in [0, 1], n >= 2.
        network: the feature network.
        pairs: pairs of images, at most n - 1.
        steps: parts of a line.
    """
    latents = model.encode(images[: pairs + 1])
    starts, ends = latents[:-1], latents[1:]
    share = torch.linspace(0, 1, steps + 1, device=latents.device).view(-1, 1, 1)
    line = (starts + share * (ends - starts)).flatten(0, 1)
    found = network.of(model.decode(part) for part in line.split(500)).view(steps + 1, len(starts), -1)
    path = (found[1:] - found[:-1]).norm(dim=-1).sum(0)
    straight = (found[-1] - found[0]).norm(dim=-1)
    kept = straight > 1e-6 * straight.mean()
    return mean_score((path[kept] / straight[kept]).cpu())
