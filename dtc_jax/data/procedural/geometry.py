"""Signed distances to simple shapes, and small helpers that every part of the procedural world uses.

Coordinates are ``u`` to the right and ``v`` downward. A distance is negative inside and roughly to scale near the edge,
which is all that anti-aliasing asks for: :func:`coverage` turns it into the share of a pixel that is inside.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Field = Any
"""A scalar or an array over pixels: all functions here broadcast, so that parameters can be either."""


def choose(index: Field, values: Sequence[float]) -> Field:
    """``values[index]`` from a table of constants."""
    return jnp.array(values, jnp.float32)[index]


def switch(index: Any, functions: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """``functions[index](*operands)`` for a traced integer index; results float32, of the last operand's shape.

    In a loop over samples (``jax.lax.map``) the one function alone is computed, under ``jax.vmap`` all of them.
    """
    shape = jnp.shape(operands[-1])

    def uniform(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            result = function(*values)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, jnp.float32), shape), result)

        return run

    return jax.lax.switch(index, [uniform(function) for function in functions], *operands)


def mix(start: Field, stop: Field, weight: Field) -> Field:
    """``start`` at weight 0, ``stop`` at weight 1."""
    return start + (stop - start) * weight


def coverage(distance: Field, width: Field) -> Field:
    """Share of a pixel of side ``width`` that lies inside, in [0, 1], from its centre's signed distance."""
    return jnp.clip(0.5 - distance / width, 0.0, 1.0)


def length(x: Field, y: Field) -> Field:
    """Euclidean length; its square is kept off zero."""
    return jnp.sqrt(x * x + y * y + 1e-12)


def corner(x: Field, y: Field, radius: Field) -> Field:
    """Intersection of the half planes x < 0 and y < 0 with the corner rounded by ``radius``."""
    x, y = x + radius, y + radius
    return length(jnp.maximum(x, 0.0), jnp.maximum(y, 0.0)) + jnp.minimum(jnp.maximum(x, y), 0.0) - radius


def box(u: Field, v: Field, half_width: Field, half_height: Field, radius: Field = 0.02) -> Field:
    """Rounded rectangle round the origin."""
    return corner(jnp.abs(u) - half_width, jnp.abs(v) - half_height, radius)


def trapezoid(u: Field, v: Field, top: Field, bottom: Field, half_height: Field, radius: Field = 0.02) -> Field:
    """Rounded, symmetric trapezoid round the origin with half-widths ``top`` and ``bottom``."""
    slope = (bottom - top) / (2 * half_height)
    edge = jnp.abs(u) - (0.5 * (top + bottom) + slope * v)
    return corner(edge * jax.lax.rsqrt(1 + slope * slope), jnp.abs(v) - half_height, radius)


def ellipse(u: Field, v: Field, half_width: Field, half_height: Field) -> Field:
    """Ellipse round the origin (distance to first order)."""
    x, y = u / half_width, v / half_height
    k0 = length(x, y)
    return k0 * (k0 - 1) / length(x / half_width, y / half_height)


def capsule(u: Field, v: Field, start: tuple[Field, Field], stop: tuple[Field, Field], radius: Field) -> Field:
    """Line segment with round ends and the given half-thickness."""
    du, dv = stop[0] - start[0], stop[1] - start[1]
    along = jnp.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0.0, 1.0)
    return length(u - start[0] - along * du, v - start[1] - along * dv) - radius


def smooth_union(a: Field, b: Field, blend: float) -> Field:
    """Union of two shapes with a rounded seam of size ``blend``."""
    h = jnp.maximum(blend - jnp.abs(a - b), 0.0) / blend
    return jnp.minimum(a, b) - h * h * blend / 4


def triangle_wave(x: Field) -> Field:
    """Distance to the nearest half-integer phase: period 1, 0.5 at whole numbers, 0 half-way."""
    return jnp.abs(x - jnp.floor(x) - 0.5)


def bands(x: Field, duty: Field, width: Field) -> Field:
    """Anti-aliased bands of period 1 in ``x``, 1 in a share ``duty`` of it; ``width`` is a pixel's in ``x``."""
    return coverage(triangle_wave(x) - 0.5 * duty, width)


def pixel_grid(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Pixel centres (x, y), each [height, width], in units of the image's width and height."""
    y, x = jnp.meshgrid((jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width, indexing="ij")
    return x, y
