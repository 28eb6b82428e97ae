from typing import Any

import pytest
import torch

from ncode_gen.distributions.priors import GaussianMixture
from ncode_gen.distributions.priors.coupling import REUSE, CoupledPairs

SIZE = 100


@pytest.fixture(scope="module")
def clusters():
    """Return a mixture fitted to two clusters of unlike sizes, and the points (600, 2)."""
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(400, 2, generator=generator) - 9, torch.randn(200, 2, generator=generator) + 9])
    base = GaussianMixture(2, 2)
    base.fit(points)
    return base, points


def one_pass(base, points, passes=1, seed=0):
    pairs = CoupledPairs(base, points, SIZE, seed)
    batches = [pairs(number) for number in range(passes * len(points) // SIZE)]
    return tuple(torch.cat(side) for side in zip(*batches, strict=True))


def rows(points):
    return sorted(map(tuple, points.tolist()))


def test_a_pass_takes_every_end_once_and_no_path_leaves_its_cluster(clusters: Any) -> None:
    base, points = clusters
    starts, ends = one_pass(base, points)
    assert rows(ends) == rows(points)
    assert (starts.sum(1).sign() == ends.sum(1).sign()).all()


def test_starts_are_distributed_as_the_base(clusters: Any) -> None:
    base, points = clusters
    starts = torch.cat([one_pass(base, points, seed=seed)[0] for seed in range(20)])
    torch.testing.assert_close(starts.mean(0), points.mean(0), atol=0.1, rtol=0)
    own = starts[starts.sum(1) < 0]
    torch.testing.assert_close(own.T.cov(), points[:400].T.cov(), atol=0.05, rtol=0)


def test_paths_are_far_shorter_than_between_strangers(clusters: Any) -> None:
    base, points = clusters
    starts, ends = one_pass(base, points)
    below = ends.sum(1) < 0
    strangers = (starts[below] - ends[below].roll(1, 0)).square().sum(1).mean()
    assert (starts - ends).square().sum(1).mean() < 0.2 * strangers


def test_pairs_are_kept_for_some_passes_and_then_made_anew(clusters: Any) -> None:
    base, points = clusters
    starts, _ = one_pass(base, points, passes=REUSE + 1)
    passes = starts.split(len(points))
    assert rows(passes[0]) == rows(passes[REUSE - 1]) and not torch.equal(passes[0], passes[1])
    assert rows(passes[0]) != rows(passes[REUSE])


def test_a_batch_depends_on_its_number_alone(clusters: Any) -> None:
    base, points = clusters
    pairs, others = CoupledPairs(base, points, SIZE, 0), CoupledPairs(base, points, SIZE, 0)
    for number in (0, 3, 25, 26):
        expected = pairs(number)
    assert all(torch.equal(one, other) for one, other in zip(others(26), expected, strict=True))
