"""Frechet and kernel distance against torchmetrics and SciPy on the same features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg

from dtc_jax.evaluation.distributions import (
    covariance_factor,
    frechet_distance,
    frechet_spread,
    kernel_distance,
    kernel_spread,
)

torch = pytest.importorskip("torch")
fid = pytest.importorskip("torchmetrics.image.fid")
kid = pytest.importorskip("torchmetrics.image.kid")


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(d).normal(size=(d, d)) / d**0.5
    return (random.normal(size=(n, d)) @ mixing + shift).astype(np.float32)


class Identity(torch.nn.Module):
    """A feature network for torchmetrics whose images are features."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d
        self.d = d

    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)[:, : self.d].float()


def of_torchmetrics(metric: Any, a: np.ndarray, b: np.ndarray) -> Any:
    for values, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(values)[:, None, None, :].repeat(1, 3, 1, 1), real=real)
    return metric.compute()


@pytest.mark.parametrize("d", [6, 40], ids=["many-images", "few-images"])
def test_frechet_distance_equals_torchmetrics_and_scipy(d: int) -> None:
    a, b = features(30, d, 1), features(24, d, 2, shift=0.3)
    ours = frechet_distance(a, b)
    covariances = [np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)]
    jitter = 0 if d < 24 else 1e-10 * np.eye(d)
    root = scipy.linalg.sqrtm((covariances[0] + jitter) @ (covariances[1] + jitter)).real
    means = np.sum((a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)) ** 2)
    by_scipy = means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert ours == pytest.approx(by_scipy, rel=1e-4)
    metric = fid.FrechetInceptionDistance(feature=Identity(d), input_img_size=(3, 1, d)).set_dtype(torch.float64)
    assert ours == pytest.approx(float(of_torchmetrics(metric, a, b)), rel=1e-4)


def test_kernel_distance_equals_torchmetrics() -> None:
    a, b = features(30, 8, 1), features(30, 8, 2, shift=0.3)
    metric = kid.KernelInceptionDistance(feature=Identity(8), subsets=1, subset_size=30)
    assert kernel_distance(a, b) == pytest.approx(float(of_torchmetrics(metric, a, b)[0]), rel=1e-4)


def test_a_set_with_itself_is_zero_and_noise_is_far() -> None:
    a = features(50, 12, 1)
    assert abs(frechet_distance(a, a)) < 1e-9
    assert frechet_distance(a, features(50, 12, 3)) < 3
    noise = np.random.default_rng(0).normal(scale=20, size=(50, 12))
    assert frechet_distance(a, noise) > 1000
    assert kernel_distance(a, noise) > 1000 * abs(kernel_distance(a, features(50, 12, 3)))


def test_weights_are_repeated_images() -> None:
    a, b = features(9, 4, 1).astype(np.float64), features(8, 4, 2).astype(np.float64)
    counts = np.array([2, 0, 1, 3, 1, 0, 0, 1, 1], np.float64)
    repeated = np.repeat(a, counts.astype(int), axis=0)
    assert frechet_distance(a, b, counts) == pytest.approx(frechet_distance(repeated, b), rel=1e-9)
    factor = covariance_factor(a, counts)[1]
    np.testing.assert_allclose(factor.T @ factor, np.cov(repeated, rowvar=False), atol=1e-12)


@pytest.mark.parametrize("spread", [frechet_spread, kernel_spread])
def test_intervals_hold_the_figure_and_follow_the_seed(spread: Any) -> None:
    a, b = features(60, 5, 1), features(60, 5, 2, shift=0.5)
    one = spread(a, b, resamples=30, seed=1, paired=True)
    assert one.low < one.value < one.high
    assert one == spread(a, b, resamples=30, seed=1, paired=True)
    assert one != spread(a, b, resamples=30, seed=2, paired=True)
    none = spread(a, b, resamples=0, seed=1, paired=True)
    assert none.value == pytest.approx(one.value) and np.isnan(none.low)
    # The spread of independent sets is what the interval estimates.
    values = [
        spread(features(60, 5, s), features(60, 5, s + 500, 0.5), resamples=0, seed=0, paired=False)[0]
        for s in range(9, 49)
    ]
    apart = spread(a, b, resamples=200, seed=1, paired=False)
    assert (apart.high - apart.low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.6)
