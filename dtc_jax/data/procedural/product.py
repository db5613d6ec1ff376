"""A product: everything that stays the same wherever it is put, drawn from one key.

Its identity is more than one vector of a few hundred numbers holds well: silhouette, four colours, pattern, and a logo
of 5 x 5 cells at a place of its own, so that a model has to copy from the reference rather than to recall a class.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped, UInt32

from dtc_jax.data.procedural import patterns, silhouettes
from dtc_jax.data.procedural.colors import COLOR_DRAWS, any_color, apart, contrasting
from dtc_jax.data.procedural.geometry import mix

HELD_OUT_START = 2**31
"""Product ids are uint32: those below are for training, those from here on are never trained on."""

LOGO_CELLS = 5
LOGO_MIN, LOGO_MAX = 8, 17

_PRODUCT_STREAM = 0x70726F64


class Product(NamedTuple):
    """A product's identity; every field has the same leading axes."""

    silhouette: Int[Array, ""]
    shape: Float[Array, "4"]
    palette: Float[Array, "4 3"]
    """RGB albedo: first three for body and accent, the fourth for the logo's ink."""
    pattern: Int[Array, ""]
    pattern_parameters: Float[Array, "6"]
    logo: Bool[Array, "5 5"]
    logo_place: Float[Array, "3"]
    """Centre (u, v) and half side, in local units."""
    logo_style: Int[Array, ""]
    """0: ink on the body, or on a patch of the first colour where the pattern is busy; 1: cut out of a patch of ink."""
    gloss: Float[Array, ""]
    """Strength of the highlight, in [0, 0.5]."""


def product_key(product_id: Integer[Array, ""] | int, seed: int = 0) -> Shaped[Array, ""]:
    """The key that a product is drawn from: a function of its id (uint32) and the world's seed alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PRODUCT_STREAM), jnp.uint32(product_id))


def held_out_id(index: Integer[Array, ""] | int) -> UInt32[Array, ""]:
    """The id of the index-th held-out product."""
    return jnp.uint32(index) | jnp.uint32(HELD_OUT_START)


_LOGO_DRAWS = LOGO_CELLS**2 + 1
_PATTERN_DRAWS = patterns.PATTERN_PARAMETERS + 1


def _draw(key: Shaped[Array, ""], *sizes: int) -> list[Float[Array, "_"]]:
    """Uniform numbers in groups of the given sizes, all from one call, which keeps compilation short."""
    draws = jax.random.uniform(key, (sum(sizes),))
    stops = list(itertools.accumulate(sizes))
    return [draws[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def _sample_logo(draws: Float[Array, "26"]) -> Bool[Array, "5 5"]:
    """Between LOGO_MIN and LOGO_MAX of the 25 cells on, any of them."""
    count = LOGO_MIN + jnp.floor(draws[-1] * (LOGO_MAX - LOGO_MIN + 1))
    rank = (draws[None, :-1] < draws[:-1, None]).sum(axis=1)
    return (rank < count).reshape(LOGO_CELLS, LOGO_CELLS)


def _other_logo(draws: Float[Array, "26"], logo: Bool[Array, "5 5"]) -> Bool[Array, "5 5"]:
    """As many cells on as before, but 4 to 7 of them moved: a Hamming distance of 8 to 14."""
    moved = 4 + jnp.floor(draws[-1] * 4)
    on, draws = logo.reshape(-1), draws[:-1]
    same_side = on[:, None] == on[None, :]
    rank = ((draws[None, :] < draws[:, None]) & same_side).sum(axis=1)
    return jnp.where(rank < moved, ~on, on).reshape(LOGO_CELLS, LOGO_CELLS)


def sample_product(key: Shaped[Array, ""]) -> Product:
    """A product from a key."""
    shape, rest, color_draws, logo_draws, pattern_draws = _draw(
        key, silhouettes.SHAPE_PARAMETERS, 8, 14 * COLOR_DRAWS, _LOGO_DRAWS, _PATTERN_DRAWS
    )
    count = len(silhouettes.NAMES)
    # posters get a larger share: the only references that can fill their frame
    kind = jnp.where(rest[0] < 0.06, silhouettes.POSTER, jnp.floor(rest[1] * count).astype(jnp.int32))

    colors = any_color(color_draws.reshape(14, COLOR_DRAWS))
    first = colors[0]
    second = apart(colors[1:5], first[None])
    third = apart(colors[5:9], jnp.stack([first, second]))
    ink = contrasting(apart(colors[9:14], jnp.stack([first, second, third]), 0.3), first)

    room = silhouettes.logo_room(kind)
    half_side = room.half_side * mix(0.94, 1.0, rest[2])
    place = jnp.stack(
        [room.center_u + room.play_u * (2 * rest[3] - 1), room.center_v + room.play_v * (2 * rest[4] - 1), half_side]
    )
    return Product(
        silhouette=kind,
        shape=shape,
        palette=jnp.stack([first, second, third, ink]),
        pattern=jnp.floor(pattern_draws[-1] * len(patterns.NAMES)).astype(jnp.int32),
        pattern_parameters=pattern_draws[:-1],
        logo=_sample_logo(logo_draws),
        logo_place=place,
        logo_style=(rest[5] < 0.4).astype(jnp.int32),
        gloss=0.5 * rest[6] ** 2,
    )


def hard_variant(product: Product, key: Shaped[Array, ""]) -> Product:
    """A product of the same silhouette, palette and pattern with another logo.

    The logo differs in at least 8 of its 25 cells. Telling the two apart takes detail, not colour, shape or texture.
    """
    (logo_draws,) = _draw(key, _LOGO_DRAWS)
    return product._replace(logo=_other_logo(logo_draws, product.logo))
