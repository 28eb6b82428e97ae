"""An inverse autoregressive posterior, to compare with: the transforms are those of the library zuko."""

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..runtime.imports import import_plainly
from .posterior import GaussianPosterior


class AutoregressivePosterior(GaussianPosterior):
    """q(z | u): a Gaussian given by features, then inverse autoregressive transforms that get the features too.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", NeurIPS 2016.

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        flow: None; the transforms are the flow.
        hidden: units of each hidden layer of a transform's masked network.
        layers: its hidden layers.
        transforms: number of transforms; the order of the dimensions is reversed from one to the next.

    Raises:
        UserError: the library zuko is not installed.
    """

    def __init__(self, features: int, dim: int, flow: None, hidden: int, layers: int, transforms: int) -> None:
        super().__init__(features, dim, flow)
        try:
            transform = import_plainly("zuko.flows").MaskedAutoregressiveTransform
        except ImportError:
            raise UserError(
                'posterior.kind = "iaf" needs the library zuko: pip install "ncode_gen[zuko]", or choose another kind'
            ) from None
        # zuko finds its masks from numbers, which a model that is only described, on the meta device, does not have.
        with torch.device("cpu"):
            orders = (torch.arange(dim), torch.arange(dim).flip(0))
            self.transforms = nn.ModuleList(
                transform(dim, features, order=orders[i % 2], hidden_features=(hidden,) * layers)
                for i in range(transforms)
            )
        self.transforms.to(self.base.weight.device)

    def _transform(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Move points (n, K, d); return them and log |det| of the moves, (n, K)."""
        context = features.unsqueeze(1).expand(-1, x.shape[1], -1)
        log_det = x.new_zeros(x.shape[:-1])
        for lazy in self.transforms:
            x, gained = lazy(context).call_and_ladj(x)
            log_det = log_det + gained
        return x, log_det

    def start(self, features: Tensor) -> Tensor:
        """Return the latent of the mean, (n, d); an autoregressive transform has no path."""
        return self._transform(super().start(features).unsqueeze(1), features)[0][:, 0]

    def sample_start(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the transformed samples, (n, K, d), and their log-density in nats, (n, K)."""
        x, log_prob = super().sample_start(features, noise)
        latents, log_det = self._transform(x, features)
        assert log_prob is not None
        return latents, log_prob - log_det
