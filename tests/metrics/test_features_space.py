"""Frechet and kernel distances, precision and recall."""

from typing import Any

import numpy as np
import pytest
import torch

from ncode_gen.metrics import (
    GaussianStatistics,
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from ncode_gen.metrics.frechet import frechet_score
from ncode_gen.metrics.kernel import kernel_score


def features(n=400, d=6, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + shift


def test_the_distance_of_commuting_gaussians_is_known() -> None:
    a = GaussianStatistics(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double())
    b = GaussianStatistics(torch.tensor([1.0, 2.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0])).double())
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 4, abs=1e-9)


def test_the_distance_agrees_with_torch_fidelity_on_the_same_features() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(), features(shift=0.5, seed=1)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    ours = frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_singular_covariances_are_no_obstacle() -> None:
    few = features(n=4, d=6)
    assert frechet_distance(GaussianStatistics.of(few), GaussianStatistics.of(few)) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_the_mean_over_pairs() -> None:
    a, b = features(30), features(20, shift=0.3, seed=1)
    x, y = a.double().numpy(), b.double().numpy()

    def kernel(p, q):
        return (p @ q.T / 6 + 1) ** 3

    def off(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    by_hand = off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert kernel_distance(a, b) == pytest.approx(by_hand, rel=1e-9)


def test_the_kernel_distance_agrees_with_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(), features(shift=0.5, seed=1)
    theirs = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=400, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_the_kernel_distance_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(), features(shift=0.5, seed=1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr("ncode_gen.metrics.kernel.BLOCK", 7)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_precision_and_recall_of_the_same_and_of_distant_sets() -> None:
    a = features()
    precision, recall = precision_recall(a, a)
    assert precision.value == recall.value == 1
    precision, recall = precision_recall(a, a + 100)
    assert precision.value == recall.value == 0


def test_dropped_modes_cost_recall_and_not_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator) + 20])
    precision, recall = precision_recall(real, torch.randn(600, 2, generator=generator))
    assert precision.value > 0.9 and recall.value == pytest.approx(0.5, abs=0.05)


def test_intervals_hold_the_value_and_shrink_with_the_data() -> None:
    wide, narrow = (frechet_score(features(n), features(n, seed=1)) for n in (100, 1600))
    assert wide.low < wide.value < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    score = kernel_score(features(), features(seed=1))
    assert score.low < score.value < score.high


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.full((4, 3), float("nan")), torch.zeros(4)])
def test_features_that_have_no_statistics_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="feature"):
        GaussianStatistics.of(bad)


def test_density_and_coverage_of_the_same_of_distant_and_of_dropped_sets() -> None:
    a = features()
    density, coverage = density_coverage(a, a)
    assert density.value == pytest.approx(1, abs=0.3) and coverage.value == 1
    density, coverage = density_coverage(a, a + 100)
    assert density.value == coverage.value == 0
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator) + 20])
    density, coverage = density_coverage(real, torch.randn(600, 2, generator=generator))
    assert coverage.value == pytest.approx(0.5, abs=0.05) and density.value > 0.8


def test_density_counts_neighbourhoods_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0]])
    # With one neighbour the radii are 1, 1 and 2.
    density, coverage = density_coverage(real, torch.tensor([[0.9], [4.5]]), neighbours=1)
    assert density.value == pytest.approx((2 + 1) / 2) and coverage.value == pytest.approx(1.0)
