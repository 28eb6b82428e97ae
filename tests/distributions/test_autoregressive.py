import sys

import pytest
import torch

from ncode_gen.distributions.autoregressive import AutoregressivePosterior
from ncode_gen.errors import UserError


def test_the_density_is_that_of_the_map() -> None:
    torch.manual_seed(0)
    posterior = AutoregressivePosterior(6, 4, None, hidden=16, layers=1, transforms=2).double()
    features, noise = torch.randn(3, 6).double(), torch.randn(3, 2, 4).double()
    drawn = posterior.sample(features, noise)
    for n in range(3):
        for k in range(2):

            def move(x, n=n):
                return posterior.sample(features[n : n + 1], x.view(1, 1, 4)).latents.view(4)

            jacobian = torch.autograd.functional.jacobian(move, noise[n, k])
            base = torch.distributions.Normal(0.0, 1.0).log_prob(noise[n, k]).sum()
            torch.testing.assert_close(drawn.log_prob[n, k], base - torch.linalg.slogdet(jacobian).logabsdet)


def test_the_start_is_the_latent_of_the_mean() -> None:
    torch.manual_seed(0)
    posterior = AutoregressivePosterior(6, 4, None, hidden=16, layers=1, transforms=2)
    features = torch.randn(3, 6)
    torch.testing.assert_close(
        posterior.start(features), posterior.sample(features, torch.zeros(3, 1, 4)).latents[:, 0]
    )


def test_without_the_library_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(UserError, match="pip install"):
        AutoregressivePosterior(6, 4, None, hidden=16, layers=1, transforms=2)
