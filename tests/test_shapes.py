"""The checker of array annotations that all tests run under: what it lets pass, and what not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from dtc_jax.models.inputs import latent_mask
from tests.shapes import check_arrays


def scaled(images: Float[Array, "b h w c"], scale: Float[Array, " c"] | None) -> tuple[Float[Array, "b h"], int]:
    return jnp.zeros((images.shape[0] + (scale is None), images.shape[1])), 1


def nothing(images: jax.Array, count: int) -> jax.Array:
    return images


@dataclasses.dataclass
class Pair:
    first: Float[Array, " n"]
    second: Float[Array, " n"]


def test_dimensions_of_one_name_agree_within_a_call() -> None:
    checked: Callable = check_arrays(scaled)
    images = jnp.zeros((2, 3, 4, 5))
    checked(images, jnp.zeros(5))
    checked(np.zeros((2, 3, 4, 5), np.float32), scale=jnp.zeros(5))
    # Another call, other sizes.
    checked(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1))
    with pytest.raises(TypeError, match=r"scale is ArrayImpl float32\[4\], not jaxtyping.Float"):
        checked(images, jnp.zeros(4))
    with pytest.raises(TypeError, match=r"images is ArrayImpl int32\[2, 3, 4, 5\], not"):
        checked(images.astype(jnp.int32), jnp.zeros(5))
    with pytest.raises(TypeError, match=r"images is float, not"):
        checked(1.0, jnp.zeros(5))
    # The result has one more than it says where there is no scale.
    with pytest.raises(TypeError, match=r"the result is tuple, not tuple\["):
        checked(images, None)


def test_what_has_no_array_stays_as_it_is() -> None:
    assert check_arrays(nothing) is nothing
    assert check_arrays(int) is int


def test_dataclasses() -> None:
    checked: Callable = check_arrays(Pair)
    checked(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"second is ArrayImpl float32\[3\], not"):
        checked(jnp.zeros(2), second=jnp.zeros(3))


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeError, match=r"mask is ArrayImpl float32\[4, 4\], not"):
        latent_mask(jnp.zeros((4, 4)), 2)
