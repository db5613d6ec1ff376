"""Ready-made rooms and products of the generated world, as files that come with the package.

    python -m dtc_jax.app.examples

writes them again. The products have held-out ids: no model of this project was trained on them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8, UInt32

from dtc_jax.arguments import parse_arguments, reports_errors
from dtc_jax.data.images import InputError, on_white, read_reference, read_scene, write_image
from dtc_jax.data.masks import bounding_box
from dtc_jax.data.procedural import (
    held_out_id,
    product_key,
    render_reference,
    sample_product,
    sample_reference_pose,
    sample_scene,
)
from dtc_jax.data.procedural.background import draw_background, illumination
from dtc_jax.data.procedural.sample import to_uint8
from dtc_jax.inference.runtime import enable_compilation_cache

FOLDER = Path(__file__).parent / "example_images"

HEIGHT, WIDTH = 192, 256
"""Of a room, in pixels."""
UNITS = (1.5, 2.0)
"""What a room shows, in pictures of the training data: a product's surroundings there are one."""
REFERENCE_SIZE = 160

_SEED = 2046
_FIRST_PRODUCT = 2**30
_WHITE = 250

ROOMS = {"living-room": 10, "salon": 17, "kitchen": 20, "hall": 37, "study": 27}
"""Numbers of the scenes, by name."""
PRODUCTS = {
    "vase": 12,
    "armchair": 36,
    "lamp": 46,
    "poster": 45,
    "cushion": 20,
    "bag": 18,
    "mug": 53,
    "boot": 8,
    "shirt": 31,
}
"""Numbers of the held-out products, by name."""


@dataclass(frozen=True)
class Example:
    """A room, a product, and where it goes."""

    room: str
    product: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in the room's pixels."""

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """The region {0, 1}: the product's silhouette, stretched over the box.

        Raises:
            InputError: the product's file is not there.
        """
        inside = np.asarray((on_white(read_product(self.product)) < _WHITE).any(axis=-1), np.uint8)
        top, left, bottom, right = bounding_box(inside)
        x0, y0, x1, y1 = self.box
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[y0:y1, x0:x1] = cv2.resize(
            inside[top:bottom, left:right], (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST
        )
        return mask


EXAMPLES = (
    Example("living-room", "vase", (96, 78, 134, 144)),
    Example("study", "armchair", (26, 100, 84, 168)),
    Example("hall", "poster", (134, 34, 182, 106)),
    Example("salon", "lamp", (92, 84, 138, 152)),
    Example("kitchen", "mug", (104, 110, 146, 160)),
)


def room_path(name: str) -> Path:
    """The file of a room."""
    return FOLDER / f"room-{name}.png"


def product_path(name: str) -> Path:
    """The file of a product."""
    return FOLDER / f"product-{name}.png"


def read_room(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A room as an array.

    Raises:
        InputError: the file is not there.
    """
    return read_scene(room_path(name))


def read_product(name: str) -> UInt8[np.ndarray, "h w c"]:
    """A product as an array.

    Raises:
        InputError: the file is not there.
    """
    return read_reference(product_path(name))


@jax.jit
def render_room(number: UInt32[Array, ""]) -> UInt8[Array, "h w 3"]:
    """An empty room: more of a scene of the generated world than its training pictures show, at their scale."""
    scene = sample_scene(jax.random.fold_in(jax.random.key(_SEED), number))
    rows, columns = (jnp.arange(HEIGHT) + 0.5) / HEIGHT, (jnp.arange(WIDTH) + 0.5) / WIDTH
    y, x = jnp.meshgrid(UNITS[0] * rows - 0.4, UNITS[1] * columns - 0.5, indexing="ij")
    image, _ = draw_background(scene, x, y, UNITS[1] / WIDTH)
    return to_uint8(image * illumination(scene, x, y))


@jax.jit
def render_product(number: UInt32[Array, ""]) -> UInt8[Array, "r r 3"]:
    """A held-out product alone on white."""
    product = sample_product(product_key(held_out_id(_FIRST_PRODUCT + number)))
    pose = sample_reference_pose(jax.random.fold_in(jax.random.key(_SEED), number))
    return to_uint8(render_reference(product, REFERENCE_SIZE, pose))


def write_examples(folder: Path = FOLDER) -> list[Path]:
    """Write every room and product.

    Raises:
        InputError: a file or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder}: cannot be made ({error.strerror})") from None
    written = []
    for names, kind, render in ((ROOMS, "room", render_room), (PRODUCTS, "product", render_product)):
        for name, number in names.items():
            path = folder / f"{kind}-{name}.png"
            write_image(path, np.asarray(render(jnp.uint32(number))))
            written.append(path)
    return written


@dataclass(frozen=True, kw_only=True)
class ExamplesArguments:
    """Write the rooms and products of the page's examples again, which come with the package."""

    folder: Path = FOLDER
    """Where; made if absent."""


@reports_errors(InputError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    arguments = parse_arguments(
        ExamplesArguments, sys.argv[1:] if argv is None else argv, "python -m dtc_jax.app.examples"
    )
    enable_compilation_cache()
    print(f"{len(write_examples(arguments.folder))} images: {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
