"""Pixel metrics against scikit-image, the formulas and hand-made cases."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from dtc_jax.evaluation import metrics


@pytest.fixture(name="images", scope="module")
def _images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.random((3, 24, 32, 3), dtype=np.float32)
    truth[1] = np.linspace(0, 1, 32, dtype=np.float32)[None, :, None]
    image = np.clip(truth + 0.2 * generator.standard_normal(truth.shape, dtype=np.float32), 0, 1)
    mask = (generator.random((3, 24, 32, 1)) > 0.6).astype(np.float32)
    return image, truth, mask


def test_ssim_map_equals_scikit_image(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, mask = images
    ours = np.asarray(jax.jit(metrics.ssim_map)(image, truth))
    masked = np.asarray(metrics.masked_ssim(image, truth, mask))
    for i in range(len(image)):
        _, theirs = structural_similarity(
            image[i],
            truth[i],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
            full=True,
        )
        np.testing.assert_allclose(ours[i], theirs, atol=1e-4)
        assert masked[i] == pytest.approx(theirs[mask[i, ..., 0] > 0].mean(), abs=1e-4)


def test_mse_and_psnr_follow_the_formula_inside_the_mask_only(
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    image, truth, mask = images
    expected = np.array([np.mean((image[i] - truth[i])[mask[i, ..., 0] > 0] ** 2) for i in range(3)])
    np.testing.assert_allclose(metrics.masked_mse(image, truth, mask), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.masked_psnr(image, truth, mask), -10 * np.log10(expected), rtol=1e-5)
    changed = np.where(mask > 0, image, 0.123)
    np.testing.assert_allclose(metrics.masked_mse(changed, truth, mask), expected, rtol=1e-5)


def test_equal_images(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, truth, mask = images
    np.testing.assert_allclose(metrics.masked_ssim(truth, truth, mask), 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics.masked_psnr(truth, truth, mask), metrics.MAX_PSNR, rtol=1e-6)


def test_paste_back(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, mask = images
    pasted = np.asarray(metrics.paste_back(image, truth, mask))
    inside = np.broadcast_to(mask > 0, truth.shape)
    np.testing.assert_array_equal(pasted[inside], image[inside])
    np.testing.assert_array_equal(pasted[~inside], truth[~inside])


def test_retrieval_rank_counts_nearer_distractors_and_ties() -> None:
    own = np.array([0.1, 0.5, 0.5], np.float32)
    distractors = np.array([[0.2, 0.3], [0.1, 0.4], [0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(metrics.retrieval_rank(own, distractors), [0, 2, 1])


def test_candidate_distances(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, mask = images
    candidates = np.stack([truth, image], axis=1)
    distances = np.asarray(metrics.candidate_distances(image, candidates, mask))
    np.testing.assert_allclose(distances[:, 0], metrics.masked_mse(image, truth, mask), rtol=1e-6)
    np.testing.assert_array_equal(distances[:, 1], 0)


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(1).random(400)
    mean, low, high = metrics.bootstrap_interval(values, seed=3)
    assert mean == pytest.approx(values.mean())
    # The normal approximation of the mean's standard error: 1.96 * sigma / sqrt(N).
    half = 1.96 * values.std() / 20
    assert high - mean == pytest.approx(half, rel=0.15)
    assert mean - low == pytest.approx(half, rel=0.15)
    assert metrics.bootstrap_interval(values, seed=3) == (mean, low, high)
    assert metrics.bootstrap_interval([1.0, 1.0], seed=0) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        metrics.bootstrap_interval([], seed=0)


def test_whole_images_equal_torchmetrics(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    image_metrics = pytest.importorskip("torchmetrics.image")
    image, truth, _ = images
    pair = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (image, truth)]
    measure = image_metrics.StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none", return_full_image=True)
    # Its own mean includes the border, which it pads by reflection; Wang et al. and scikit-image leave it out.
    ssim = measure(*pair)[1][..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    psnr = [
        float(image_metrics.PeakSignalNoiseRatio(data_range=1.0)(a[None], b[None])) for a, b in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(metrics.image_ssim(image, truth), ssim, atol=1e-4)
    np.testing.assert_allclose(metrics.image_psnr(image, truth), psnr, rtol=1e-5)


def test_share_changed_looks_outside_the_mask_only() -> None:
    scene = np.full((1, 4, 5, 3), 100, np.uint8)
    mask = np.zeros((1, 4, 5, 1), np.uint8)
    mask[:, :2] = 1
    result = scene.copy()
    result[:, :2] = 7
    assert metrics.share_changed(result, scene, mask)[0] == 0
    result[0, 3, 0, 2] = 101
    result[0, 3, 1] = 90
    assert metrics.share_changed(result, scene, mask)[0] == pytest.approx(2 / 10)
    assert metrics.share_changed(result, scene, mask, tolerance=1)[0] == pytest.approx(1 / 10)
    assert metrics.share_changed(result, scene, np.ones_like(mask))[0] == 0


def test_bootstrap_is_drawn_in_parts_as_at_once() -> None:
    values = np.random.default_rng(1).random(5000)
    places = np.random.default_rng(3).integers(0, 5000, size=(2000, 5000))
    low, high = np.percentile(values[places].mean(axis=1), [2.5, 97.5])
    assert metrics.bootstrap_interval(values, seed=3) == pytest.approx((values.mean(), low, high), rel=1e-12)
