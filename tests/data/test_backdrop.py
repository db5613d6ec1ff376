"""Studio backdrops become white; products and other photos stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.data.backdrop import whiten_backdrop
from dtc_jax.inference.prepare import prepare

RED = (180, 30, 40)


def _studio(color: tuple[int, int, int] = (232, 232, 230), slope: float = 0.1) -> np.ndarray:
    """A red ring, its hole closed by a light disc, on a backdrop that brightens to the right; with sensor noise."""
    y, x = np.mgrid[:120, :160]
    image = np.array(color) + slope * (x[..., None] - 80) + np.random.default_rng(0).uniform(-1, 1, (120, 160, 1))
    radius = np.hypot(y - 60, x - 70)
    image[radius < 40] = RED
    image[radius < 20] = (235, 235, 235)
    return np.rint(image).astype(np.uint8)


def _product() -> np.ndarray:
    y, x = np.mgrid[:120, :160]
    return np.hypot(y - 60, x - 70) < 40


def test_the_backdrop_becomes_white_and_the_product_stays() -> None:
    image = _studio()
    before = image.copy()
    white = whiten_backdrop(image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(white[_product()], image[_product()])
    y, x = np.mgrid[:120, :160]
    # The blur mixes the product into its neighbours, which stay.
    beyond = np.hypot(y - 60, x - 70) > 43
    assert (white[beyond] == 255).all()


def test_a_soft_shadow_is_backdrop_until_it_is_dark() -> None:
    image = _studio(slope=0.0)
    shade = np.linspace(0, 120, 60)
    image[102:116, 50:110] = np.clip(image[102:116, 50:110] - shade[None, :, None], 0, 255).astype(np.uint8)
    white = whiten_backdrop(image)
    assert (white[104:114, 55:68] == 255).all()
    np.testing.assert_array_equal(white[104:114, 95:108], image[104:114, 95:108])


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8),
        _studio(color=(90, 90, 90)),
        _studio(color=(254, 254, 254), slope=0.0),
        _studio(color=(240, 200, 190)),
        np.concatenate([_studio(), np.full((30, 160, 3), (60, 120, 30), np.uint8)]),
    ],
    ids=["a scene", "a dark border", "white", "a coloured border", "a table below"],
)
def test_other_photos_stay_as_they_are(image: np.ndarray) -> None:
    assert whiten_backdrop(image) is image


@pytest.mark.parametrize("alpha", ["none", "opaque enough", "cut out"])
def test_hint_and_reference_lose_the_backdrop_unless_told_to_keep_it(alpha: str) -> None:
    reference = _studio()
    if alpha != "none":
        channel = np.full((120, 160, 1), 250, np.uint8)
        channel[0, 0] = 0 if alpha == "cut out" else 250
        reference = np.concatenate([reference, channel], axis=-1)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    scene = np.full((64, 64, 3), 120, np.uint8)
    cleaned = prepare(scene, mask, reference, presets.test()).batch
    kept = prepare(scene, mask, reference, presets.test(), keep_backdrop=True).batch
    # A cut-out's alpha says what the product is.
    changes = alpha != "cut out"
    assert (cleaned["hint"] != kept["hint"]).any() == changes
    assert (cleaned["reference"] != kept["reference"]).any() == changes
    if changes:
        inside = cleaned["hint"].any(axis=-1)
        left = np.flatnonzero(inside.any(axis=0))[0]
        reds = (cleaned["hint"][..., 0] > 150) & (cleaned["hint"][..., 1] < 120)
        assert reds[:, left : left + 2].any(), "trimmed to the product"
