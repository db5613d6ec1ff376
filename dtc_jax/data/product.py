"""Photos of one product, and pictures of its class, as training samples (DreamBooth, Ruiz et al., 2022).

Photos and pictures take turns: the sample at an even place of the endless order is a photo, at an odd one a picture,
each in an order of its own that visits all before any comes again. A sample is a function of (seed, place) alone.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.config_base import ConfigError
from dtc_jax.data.images import InputError, on_white, read_reference
from dtc_jax.data.locations import images_in
from dtc_jax.data.order import Order
from dtc_jax.data.random_masks import random_mask
from dtc_jax.data.references import frame_reference
from dtc_jax.data_config import DataConfig

KEPT = 512
"""Pictures of the class that are kept in memory; more are read again each time."""

_HELD_OUT = 2**32
"""Places from here on are those of evaluation: training's are counted in 32 bits."""

HostSample = dict[str, np.ndarray]


class ProductPhotos:
    """The training samples of one product."""

    def __init__(self, data: DataConfig, size: int, prior: bool) -> None:
        """
        Args:
            data: Names the folders.
            size: Height and width of the samples.
            prior: Whether pictures of the class are every other sample.

        Raises:
            ConfigError: a folder that is missing or has no images in it, or an image that cannot be read.
        """
        self._data, self._size = data, size
        self.photos = image_files(data.product, "data.product", "put three to five photos of the product into it")
        self.pictures: list[Path] = []
        if prior:
            self.pictures = image_files(data.class_images, "data.class_images", "put pictures of the class into it")
        # What cannot be read is said before training, and not in the middle of it.
        self._photos = [self._square(path, "data.product", data.product_fit == "crop") for path in self.photos]
        self._picture = functools.lru_cache(maxsize=KEPT)(lambda path: self._square(path, "data.class_images", True))
        for path in self.pictures[:KEPT]:
            self._picture(path)
        self._photo_order = Order(len(self._photos), data.seed)
        self._picture_order = Order(max(1, len(self.pictures)), data.seed)

    def sample(self, place: int) -> HostSample:
        """`scene` [size, size, 3] and `mask` [size, size, 1], uint8, `prior` (1: a picture of the class) and `index`.

        Raises:
            ConfigError: a picture that cannot be read any more.
        """
        if not self.pictures:
            return self._masked(self._photos[self._photo_order.record(place)], place, 0)
        turn, prior = divmod(place, 2)
        if prior:
            return self._masked(self._picture(self.pictures[self._picture_order.record(turn)]), place, 1)
        return self._masked(self._photos[self._photo_order.record(turn)], place, 0)

    def evaluation_sample(self, number: int) -> HostSample:
        """A photo with a mask that training does not draw; past the last photo the first comes again."""
        sample = self._masked(self._photos[number % len(self._photos)], _HELD_OUT + number, 0, mirrored=False)
        return {**sample, "index": np.array(number, np.uint32)}

    def _masked(self, scene: UInt8[np.ndarray, "s s 3"], place: int, prior: int, mirrored: bool = True) -> HostSample:
        mask = random_mask(self._data.seed, place, self._size, self._data.box_probability)
        bits = np.random.Philox(key=np.array([self._data.seed, place], np.uint64)).random_raw(1)
        if mirrored and float(bits[0] >> np.uint64(11)) / 2**53 < self._data.flip_probability:
            scene = scene[:, ::-1]
        return {
            "scene": np.ascontiguousarray(scene),
            "mask": mask,
            "prior": np.array(prior, np.uint8),
            "index": np.array(place % 2**32, np.uint32),
        }

    def _square(self, path: Path, what: str, crop: bool) -> UInt8[np.ndarray, "s s 3"]:
        try:
            image = read_reference(path)
        except InputError as error:
            raise ConfigError(f"{what}: {str(error).removeprefix('reference ')}; take it out, or replace it") from None
        return cropped(on_white(image), self._size) if crop else frame_reference(image, self._size, trim=False)


def image_files(folder: str | None, what: str, advice: str) -> list[Path]:
    """The images in a folder that a field names.

    Raises:
        ConfigError: it is not given, no folder, or has none.
    """
    if folder is None:
        raise ConfigError(f"{what}: not given; name a folder: {advice}")
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"{what} {folder}: no such folder; {advice}")
    files = images_in(path)
    if not files:
        raise ConfigError(f"{what} {folder}: a folder without images; {advice}")
    return files


def cropped(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The largest square in the middle of a picture, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def fingerprint_of(files: list[Path]) -> str:
    """Which pictures these are, whatever their folder is called: 12 digits of a hash of names and contents."""
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:12]
