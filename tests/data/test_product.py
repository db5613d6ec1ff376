"""Photos of one product and pictures of its class as training samples, and their masks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.config import ConfigError, DataConfig
from dtc_jax.data.product import ProductPhotos, cropped, fingerprint_of
from dtc_jax.data.random_masks import SMALLEST, random_mask
from tests.dreampaint import write_photos

SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    photos, pictures = write_photos(folder / "photos", 3), write_photos(folder / "pictures", 5)
    return DataConfig(
        kind="product", product=str(photos), class_images=str(pictures), flip_probability=0, product_fit="crop"
    )


# --------------------------------------------------------------------------------------------------------------- masks


def test_masks_are_rectangles_and_ellipses_of_every_size() -> None:
    masks = [random_mask(7, place, 64, 0.5) for place in range(400)]
    boxes = 0
    for mask in masks:
        assert mask.shape == (64, 64, 1) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        rows, columns = np.flatnonzero(mask.any(axis=(1, 2))), np.flatnonzero(mask.any(axis=(0, 2)))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert min(height, width) >= SMALLEST * 64
        filled = mask.sum() / (height * width)
        boxes += filled == 1
        assert filled == 1 or abs(filled - np.pi / 4) < 0.06
    assert 160 < boxes < 240
    covered = np.mean(masks, axis=0)[..., 0]
    assert covered[8:56, 8:56].min() > 0.1 and covered.max() < 0.8
    assert 0.15 < np.mean([mask.mean() for mask in masks]) < 0.5


def test_a_mask_depends_on_seed_and_place_alone() -> None:
    np.testing.assert_array_equal(random_mask(1, 5, 32, 0.5), random_mask(1, 5, 32, 0.5))
    others = [random_mask(1, 6, 32, 0.5), random_mask(2, 5, 32, 0.5)]
    assert not any(np.array_equal(random_mask(1, 5, 32, 0.5), other) for other in others)
    assert len({random_mask(1, place, 32, 0.5).tobytes() for place in range(60)}) == 60
    for place in range(20):
        assert random_mask(0, place, 16, 1.0).sum() == np.prod(
            [np.ptp(np.flatnonzero(random_mask(0, place, 16, 1.0).any(axis=axes))) + 1 for axes in ((1, 2), (0, 2))]
        )


# ------------------------------------------------------------------------------------------------------------- samples


def test_photos_and_pictures_take_turns(data: DataConfig) -> None:
    photos = ProductPhotos(data, SIZE, prior=True)
    samples = [photos.sample(place) for place in range(30)]
    assert [int(sample["prior"]) for sample in samples] == [0, 1] * 15
    assert [int(sample["index"]) for sample in samples] == list(range(30))
    # Each of three photos five times, each of five pictures three times.
    for prior, times in ((0, 5), (1, 3)):
        seen = Counter(sample["scene"].tobytes() for sample in samples if sample["prior"] == prior)
        assert set(seen.values()) == {times} and len(seen) * times == 15
    first = samples[7]
    again = ProductPhotos(data, SIZE, prior=True).sample(7)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    np.testing.assert_array_equal(first["mask"], random_mask(data.seed, 7, SIZE, data.box_probability))


def test_without_pictures_of_the_class(data: DataConfig) -> None:
    photos = ProductPhotos(dataclasses.replace(data, class_images=None), SIZE, prior=False)
    samples = [photos.sample(place) for place in range(6)]
    assert not any(sample["prior"] for sample in samples)
    assert len({sample["scene"].tobytes() for sample in samples}) == 3


def test_mirrored_samples(data: DataConfig) -> None:
    plain, mirrored = (
        ProductPhotos(dataclasses.replace(data, flip_probability=share), SIZE, prior=False) for share in (0.0, 1.0)
    )
    np.testing.assert_array_equal(mirrored.sample(4)["scene"], plain.sample(4)["scene"][:, ::-1])
    np.testing.assert_array_equal(mirrored.sample(4)["mask"], plain.sample(4)["mask"])
    np.testing.assert_array_equal(mirrored.evaluation_sample(1)["scene"], plain.evaluation_sample(1)["scene"])


def test_evaluation_has_masks_of_its_own(data: DataConfig) -> None:
    photos = ProductPhotos(data, SIZE, prior=False)
    samples = [photos.evaluation_sample(number) for number in range(4)]
    np.testing.assert_array_equal(samples[0]["scene"], samples[3]["scene"])
    assert not np.array_equal(samples[0]["mask"], samples[3]["mask"])
    trained = {photos.sample(place)["mask"].tobytes() for place in range(100)}
    assert not trained & {sample["mask"].tobytes() for sample in samples}


def test_how_photos_become_squares(tmp_path: Path) -> None:
    """Turned as EXIF says, transparency on white; padded with white, or cut at the centre."""
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[..., 0], wide[..., 3], wide[0, 0, 3] = 200, 255, 0
    image = Image.fromarray(wide)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    data = DataConfig(kind="product", product=str(tmp_path), flip_probability=0)
    padded = ProductPhotos(data, 30, prior=False).sample(0)["scene"]
    assert (padded[:, :10] == 255).all() and (padded[:, 20:] == 255).all()
    assert (padded[1:29, 10:19] == [200, 0, 0]).all()
    assert (padded[0, 19] == 255).all()  # turned to the right: the first pixel is at the right
    cut = ProductPhotos(dataclasses.replace(data, product_fit="crop"), 10, prior=False).sample(0)["scene"]
    assert (cut == [200, 0, 0]).all()
    np.testing.assert_array_equal(cropped(padded, 30), padded)


# ------------------------------------------------------------------------------------------------------- errors of use


def test_what_cannot_be_used_is_named(data: DataConfig, tmp_path: Path) -> None:
    def refused(message: str, **fields: str | None) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            ProductPhotos(dataclasses.replace(data, **fields), SIZE, prior=True)
        assert "\n" not in str(caught.value)

    refused(r"^data\.product: not given; name a folder: put three to five photos", product=None)
    refused(r"^data\.product .*absent: no such folder", product=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    refused(r"^data\.product .*empty: a folder without images", product=str(tmp_path / "empty"))
    refused(r"^data\.class_images .*empty: a folder without images", class_images=str(tmp_path / "empty"))
    broken = write_photos(tmp_path / "broken")
    (broken / "torn.jpg").write_bytes((broken / "photo0.png").read_bytes()[:60])
    refused(r"^data\.product: .*torn\.jpg: .*; take it out, or replace it", product=str(broken))
    refused(r"^data\.class_images: .*torn\.jpg", class_images=str(broken))
    with pytest.raises(ConfigError, match=r"has no word that data.class_prompt = 'a photo of a shirt' lacks"):
        dataclasses.replace(data, prompt="a photo of shirt", class_prompt="a photo of a shirt")


def test_which_photos_they_are(tmp_path: Path) -> None:
    one, other = write_photos(tmp_path / "one"), write_photos(tmp_path / "other")
    assert fingerprint_of(sorted(one.iterdir())) == fingerprint_of(sorted(other.iterdir()))
    (other / "photo0.png").write_bytes((other / "photo1.png").read_bytes())
    assert fingerprint_of(sorted(one.iterdir())) != fingerprint_of(sorted(other.iterdir()))
