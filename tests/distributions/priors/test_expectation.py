import math
from itertools import pairwise

import pytest
import torch

from ncode_gen.distributions.priors import GaussianMixture
from ncode_gen.distributions.priors.expectation import Gaussians, fit_gaussians


def clustered(n=6000, dim=3, components=4):
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(components, dim, generator=generator)
    mixing = torch.randn(components, dim, dim, generator=generator)
    chosen = torch.randint(components, (n,), generator=generator)
    noise = torch.randn(n, dim, 1, generator=generator)
    return centres[chosen] + (mixing[chosen] @ noise).squeeze(-1)


def likelihood(fitted, points):
    return float(torch.logsumexp(fitted.joint_log_prob(points.double()), 1).mean())


def test_joint_densities_are_torchs_in_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    cholesky = torch.randn(5, 3, 3, generator=generator).double().tril()
    cholesky.diagonal(dim1=1, dim2=2).abs_().add_(0.1)
    gaussians = Gaussians(torch.randn(5).double().log_softmax(0), torch.randn(5, 3).double(), cholesky)
    points = torch.randn(50, 3).double()
    each = torch.distributions.MultivariateNormal(gaussians.means, scale_tril=cholesky)
    expected = gaussians.log_weights + each.log_prob(points.unsqueeze(1))
    torch.testing.assert_close(gaussians.joint_log_prob(points), expected)
    monkeypatch.setattr("ncode_gen.distributions.priors.expectation.ROWS", 60)
    torch.testing.assert_close(gaussians.joint_log_prob(points), expected)
    assert gaussians.joint_log_prob(points[:0]).shape == (0, 5)


def test_it_is_as_likely_as_scikit_learns() -> None:
    from sklearn.mixture import GaussianMixture as Reference

    points = clustered()
    reference = Reference(4, reg_covar=1e-5, random_state=0, max_iter=200).fit(points.double().numpy())
    expected = float(reference.score(points.double().numpy()))
    assert abs(likelihood(fit_gaussians(points, 4, 0, 200), points) - expected) < 0.01


def test_more_rounds_are_not_less_likely() -> None:
    points = clustered(components=6)
    found = [likelihood(fit_gaussians(points, 6, 0, rounds), points) for rounds in (1, 3, 10, 40)]
    assert all(later > earlier - 1e-3 for earlier, later in pairwise(found)), found


def test_gaussians_of_few_points_stay_wide() -> None:
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    fitted = fit_gaussians(points, 30, 0, 20)
    assert bool(torch.isfinite(fitted.cholesky).all())
    fresh = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    # Two points to a Gaussian of eight dimensions: without a floor its covariance is singular, and others impossible.
    assert torch.linalg.svdvals(fitted.cholesky).min() > 0.05
    assert likelihood(fitted, fresh) > -8 * 0.5 * (math.log(2 * math.pi) + 1) - 45


def test_the_share_of_the_work_rises_to_one() -> None:
    shares = []
    GaussianMixture(3, 0).fit(clustered(), 0, shares.append)
    assert shares == sorted(shares) and shares[0] > 0 and 0.5 < shares[-1] <= 1


def test_only_lower_triangles_are_saved() -> None:
    mixture = GaussianMixture(3, 4)
    mixture.fit(clustered())
    assert mixture.state_dict()["factors"].shape == (4, 6)
    cholesky = mixture.gaussians.cholesky
    assert torch.equal(cholesky, cholesky.tril()) and bool((cholesky.diagonal(dim1=1, dim2=2) > 0).all())
