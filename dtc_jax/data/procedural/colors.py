"""Colours that cover RGB space the way goods in a shop do: greys and whites, browns, pastels, saturated ones."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dtc_jax.data.procedural.geometry import Field, mix

DARKEST, LIGHTEST = 0.05, 0.92
"""Albedo is kept in this range: a white product stays visible on a white background, and trimming finds it."""

COLOR_DRAWS = 4
COLOR_BINS = 11
LUMINANCE = (0.299, 0.587, 0.114)


def luminance(color: Float[Array, "*shape 3"]) -> Float[Array, "*shape"]:
    """Brightness as seen, in [0, 1], of RGB in [0, 1]."""
    return color @ jnp.array(LUMINANCE)


def from_hsv(hue: Field, saturation: Field, value: Field) -> Float[Array, "*shape 3"]:
    """RGB in [0, 1]; hue in turns."""
    ramp = jnp.abs(((hue[..., None] + jnp.array([0.0, 2 / 3, 1 / 3])) % 1.0) * 6 - 3) - 1
    return value[..., None] * mix(1.0, jnp.clip(ramp, 0.0, 1.0), saturation[..., None])


def any_color(draws: Float[Array, "*shape 4"]) -> Float[Array, "*shape 3"]:
    """A colour from four uniform draws: 20 % greys, 12 % browns, 24 % pastels, 44 % saturated."""
    family, hue, a, b = (draws[..., i] for i in range(4))
    grey = from_hsv(hue, 0.06 * a, jnp.where(a > 0.6, 0.75 + 0.2 * b, jnp.where(a > 0.3, 0.05 + 0.12 * b, b)))
    brown = from_hsv(0.04 + 0.06 * hue, 0.35 + 0.4 * a, 0.25 + 0.5 * b)
    pastel = from_hsv(hue, 0.15 + 0.25 * a, 0.75 + 0.2 * b)
    saturated = from_hsv(hue, 0.6 + 0.4 * a, 0.35 + 0.6 * b)
    family = family[..., None]
    color = jnp.where(family < 0.2, grey, jnp.where(family < 0.32, brown, jnp.where(family < 0.56, pastel, saturated)))
    return jnp.clip(color, DARKEST, LIGHTEST)


def apart(candidates: Float[Array, "n 3"], others: Float[Array, "k 3"], enough: float = 0.45) -> Float[Array, "3"]:
    """The first candidate that differs from all others by at least ``enough`` in RGB, or else the most different."""
    gaps = jnp.sqrt(((candidates[:, None] - others[None]) ** 2).sum(-1)).min(axis=1)
    return candidates[jnp.argmax(jnp.minimum(gaps, enough))]


def contrasting(color: Float[Array, "3"], against: Float[Array, "3"], gap: float = 0.42) -> Float[Array, "3"]:
    """``color`` made lighter or darker until its luminance is at least ``gap`` away from that of ``against``."""
    own, other = luminance(color), luminance(against)
    target = jnp.where(other > 0.48, jnp.minimum(own, other - gap), jnp.maximum(own, other + gap))
    darker = color * target / jnp.maximum(own, 1e-3)
    lighter = mix(color, 1.0, (target - own) / jnp.maximum(1 - own, 1e-3))
    return jnp.clip(jnp.where(target < own, darker, lighter), 0.02, 0.95)


def color_bin(color: Float[Array, "3"]) -> Int[Array, ""]:
    """A coarse name for a colour: 0 black, 1 grey, 2 white, 3..10 eight hues from red."""
    high, low = color.max(), color.min()
    chroma = high - low
    r, g, b = color
    sector = jnp.where(high == r, (g - b), jnp.where(high == g, (b - r), (r - g))) / jnp.maximum(chroma, 1e-6)
    hue = ((sector + jnp.where(high == r, 0.0, jnp.where(high == g, 2.0, 4.0))) / 6) % 1.0
    neutral = jnp.where(high < 0.25, 0, jnp.where(high < 0.7, 1, 2))
    return jnp.where(chroma < 0.12, neutral, 3 + jnp.floor(hue * 8 + 0.5) % 8).astype(jnp.int32)
