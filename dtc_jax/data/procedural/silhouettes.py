"""The silhouettes: what a product is, without its colours.

Each kind maps shape parameters in [0, 1] and local coordinates to two signed distances, ``body`` (which carries pattern
and logo) and ``accent`` (trim, handle, stand: drawn over the body in one plain colour). A product spans about [-1, 1]
in the larger of its two directions. Most kinds are bulky, so that the largest rectangle inside them is not tiny.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dtc_jax.data.procedural.geometry import (
    Field,
    box,
    capsule,
    choose,
    corner,
    ellipse,
    length,
    mix,
    smooth_union,
    switch,
    trapezoid,
)

SHAPE_PARAMETERS = 4


class Outline(NamedTuple):
    """Signed distances, in local units."""

    body: Field
    accent: Field


class LogoRoom(NamedTuple):
    """Where a logo fits on the body: centre, how far it may move from it, and half its side, in local units."""

    center_u: Field
    center_v: Field
    play_u: Field
    play_v: Field
    half_side: Field


def _shirt(p: Field, u: Field, v: Field) -> Outline:
    a = jnp.abs(u)
    torso = trapezoid(u, v - 0.02, mix(0.6, 0.66, p[0]), mix(0.6, 0.74, p[1]), 0.93, 0.08)
    elbow = (mix(0.74, 0.84, p[2]), mix(-0.25, 0.3, p[3]))
    body = smooth_union(torso, capsule(a, v, (0.46, -0.66), elbow, 0.2), 0.06)
    neck = ellipse(u, v + 0.95, 0.3, 0.24)
    body = jnp.maximum(body, -neck)
    return Outline(body, jnp.maximum(body, neck - 0.09))


def _mug(p: Field, u: Field, v: Field) -> Outline:
    half_height = mix(0.78, 0.95, p[0])
    body = trapezoid(u + 0.22, v, 0.7, mix(0.55, 0.72, p[1]), half_height, 0.08)
    handle = jnp.abs(ellipse(u - 0.46, v + 0.02, 0.42, mix(0.38, 0.5, p[2]))) - mix(0.07, 0.11, p[3])
    rim = jnp.maximum(body, v + half_height - 0.12)
    return Outline(body, jnp.minimum(jnp.maximum(handle, -body), rim))


def _bottle(p: Field, u: Field, v: Field) -> Outline:
    neck_half = mix(0.16, 0.26, p[1])
    belly = box(u, v - mix(0.32, 0.4, p[2]), mix(0.52, 0.64, p[0]), 1 - mix(0.32, 0.4, p[2]), 0.14)
    body = smooth_union(belly, box(u, v + 0.4, neck_half, 0.5, 0.02), 0.35)
    return Outline(body, box(u, v + 0.86, neck_half + 0.06, mix(0.1, 0.14, p[3]), 0.03))


def _vase(p: Field, u: Field, v: Field) -> Outline:
    swing = mix(0.18, 0.26, p[0])
    phase = (v - mix(0.02, 0.16, p[1])) * mix(2.5, 2.9, p[2])
    slope = swing * jnp.sin(phase) * 2.7
    edge = (jnp.abs(u) - (0.53 + swing * jnp.cos(phase))) / jnp.sqrt(1 + slope * slope)
    body = corner(edge, jnp.abs(v) - 0.97, 0.04)
    return Outline(body, jnp.maximum(body, mix(0.85, 0.78, p[3]) - jnp.abs(v)))


def _bag(p: Field, u: Field, v: Field) -> Outline:
    half_height = mix(0.62, 0.74, p[0])
    top = 0.97 - 2 * half_height
    body = trapezoid(u, v - (0.97 - half_height), mix(0.66, 0.9, p[1]), mix(0.82, 0.95, p[2]), half_height, 0.1)
    loop = jnp.abs(ellipse(u, v - top, mix(0.32, 0.5, p[3]), top + 0.9)) - 0.07
    handle = jnp.maximum(loop, v - top - 0.05)
    return Outline(body, jnp.minimum(handle, jnp.maximum(body, v - top - 0.16)))


def _cushion(p: Field, u: Field, v: Field) -> Outline:
    half_height = mix(0.72, 0.95, p[0])
    pinch = mix(0.03, 0.12, p[1])
    x, y = u / 0.97, v / half_height
    body = box(u, v, 0.97 - pinch * (1 - y * y), half_height - pinch * (1 - x * x), mix(0.06, 0.2, p[2]))
    return Outline(body, jnp.abs(body + 0.09) - 0.03)


def _boot(p: Field, u: Field, v: Field) -> Outline:
    shaft = box(u + 0.3, v + 0.12, mix(0.5, 0.56, p[0]), mix(0.72, 0.84, p[1]), 0.1)
    foot = box(u - 0.06, v - mix(0.5, 0.56, p[2]), 0.88, 0.34, mix(0.2, 0.3, p[3]))
    body = jnp.maximum(smooth_union(shaft, foot, 0.12), v - 0.86)
    return Outline(body, box(u - 0.06, v - 0.9, 0.94, 0.08, 0.05))


def _lamp(p: Field, u: Field, v: Field) -> Outline:
    shade = trapezoid(u, v + 0.36, mix(0.56, 0.72, p[0]), mix(0.82, 0.98, p[1]), 0.62, 0.03)
    stem = box(u, v - 0.58, mix(0.06, 0.13, p[2]), 0.34)
    foot = box(u, v - 0.92, mix(0.36, 0.55, p[3]), 0.07, 0.05)
    hem = jnp.maximum(shade, 0.15 - v)
    return Outline(shade, jnp.minimum(jnp.minimum(jnp.maximum(stem, -shade), foot), hem))


def _armchair(p: Field, u: Field, v: Field) -> Outline:
    a = jnp.abs(u)
    back = box(u, v + 0.2, mix(0.66, 0.76, p[0]), 0.78, mix(0.08, 0.3, p[1]))
    body = jnp.minimum(back, box(u, v - 0.5, 0.76, 0.3, 0.06))
    arms = box(a - 0.82, v - 0.38, 0.17, mix(0.36, 0.46, p[2]), 0.1)
    legs = box(a - 0.78, v - 0.9, 0.07, 0.1)
    seam = jnp.maximum(body, jnp.abs(v - mix(0.3, 0.36, p[3])) - 0.035)
    return Outline(body, jnp.minimum(jnp.minimum(arms, legs), seam))


def _parcel(p: Field, u: Field, v: Field) -> Outline:
    half_height = mix(0.66, 0.95, p[0])
    body = box(u, v, 0.95, half_height, 0.04)
    lid = box(u, v + half_height - mix(0.1, 0.15, p[1]), 0.99, mix(0.1, 0.15, p[1]), 0.03)
    return Outline(body, lid)


def _poster(p: Field, u: Field, v: Field) -> Outline:
    body = box(u, v, poster_half_width(p), 1.0, 0.005)
    frame = jnp.abs(body + 0.04) - 0.04
    return Outline(body, jnp.where(p[1] > 0.5, frame, 4.0))


def _blob(p: Field, u: Field, v: Field) -> Outline:
    v = v - 0.06
    r = length(u, v)
    c, s = u / r, v / r
    c2, s2 = c * c - s * s, 2 * c * s
    c3, s3 = c2 * c - s2 * s, s2 * c + c2 * s
    wobble = (p[0] - 0.5) * c3 + (p[1] - 0.5) * s3 + 0.6 * (p[2] - 0.5) * c2 + 0.8 * (p[3] - 0.5) * s2
    body = (r - 0.82 - 0.16 * wobble) * 0.95
    stalk = capsule(u, v, (0.0, -0.72), (mix(-0.2, 0.2, p[3]), -0.97), 0.075)
    leaf = ellipse(u - 0.22, v + 0.88, 0.2, 0.08)
    return Outline(body, jnp.minimum(stalk, leaf))


def _hat(p: Field, u: Field, v: Field) -> Outline:
    crown = trapezoid(u, v + 0.14, mix(0.5, 0.62, p[0]), mix(0.6, 0.72, p[1]), 0.68, mix(0.08, 0.35, p[2]))
    brim = ellipse(u, v - 0.54, 1.0, mix(0.15, 0.22, p[3]))
    band = jnp.maximum(crown, jnp.abs(v - 0.36) - 0.09)
    return Outline(jnp.minimum(crown, brim), band)


def _plate(p: Field, u: Field, v: Field) -> Outline:
    body = ellipse(u, v, 0.97, mix(0.84, 0.97, p[0]))
    return Outline(body, jnp.abs(body + mix(0.06, 0.16, p[1])) - mix(0.035, 0.07, p[2]))


def _dress(p: Field, u: Field, v: Field) -> Outline:
    skirt = trapezoid(u, v - 0.28, mix(0.42, 0.52, p[0]), mix(0.84, 0.98, p[1]), 0.7, 0.05)
    bodice = trapezoid(u, v + 0.66, mix(0.48, 0.62, p[2]), 0.42, 0.32, 0.06)
    neck = ellipse(u, v + 1.0, mix(0.2, 0.32, p[3]), 0.28)
    body = jnp.maximum(smooth_union(skirt, bodice, 0.1), -neck)
    return Outline(body, jnp.maximum(body, jnp.abs(v + 0.38) - 0.06))


def _birdhouse(p: Field, u: Field, v: Field) -> Outline:
    eaves = mix(-0.32, -0.22, p[0])
    body = box(u, v - (0.96 + eaves) / 2, mix(0.68, 0.82, p[1]), (0.96 - eaves) / 2, 0.03)
    roof = trapezoid(u, v - (eaves - 0.96) / 2, mix(0.05, 0.5, p[2]), mix(0.9, 0.98, p[3]), (eaves + 0.96) / 2, 0.04)
    return Outline(body, roof)


KINDS = {
    "shirt": _shirt,
    "mug": _mug,
    "bottle": _bottle,
    "vase": _vase,
    "bag": _bag,
    "cushion": _cushion,
    "boot": _boot,
    "lamp": _lamp,
    "armchair": _armchair,
    "parcel": _parcel,
    "poster": _poster,
    "blob": _blob,
    "hat": _hat,
    "plate": _plate,
    "dress": _dress,
    "birdhouse": _birdhouse,
}

NAMES = tuple(KINDS)
POSTER = NAMES.index("poster")

# lowest point, centre of the logo (u, v), how far it may move (u, v), half its side, bulge seen in the shading
_LAYOUT = {
    "shirt": (0.95, 0.0, 0.1, 0.12, 0.2, 0.38, 0.6),
    "mug": (0.0, -0.22, 0.04, 0.1, 0.14, 0.4, 0.9),
    "bottle": (1.0, 0.0, 0.4, 0.02, 0.12, 0.38, 0.9),
    "vase": (0.97, 0.0, 0.08, 0.1, 0.08, 0.4, 0.9),
    "bag": (0.97, 0.0, 0.36, 0.12, 0.08, 0.4, 0.5),
    "cushion": (0.0, 0.0, 0.0, 0.26, 0.1, 0.4, 0.8),
    "boot": (0.98, -0.3, -0.22, 0.03, 0.16, 0.38, 0.8),
    "lamp": (0.99, 0.0, -0.34, 0.08, 0.08, 0.38, 0.8),
    "armchair": (1.0, 0.0, -0.34, 0.16, 0.1, 0.38, 0.5),
    "parcel": (0.0, 0.0, 0.14, 0.34, 0.04, 0.4, 0.5),
    "poster": (1.0, 0.0, 0.0, 0.16, 0.4, 0.4, 0.35),
    "blob": (0.9, 0.0, 0.08, 0.1, 0.1, 0.4, 0.95),
    "hat": (0.74, 0.0, -0.24, 0.03, 0.08, 0.38, 0.8),
    "plate": (0.0, 0.0, 0.0, 0.08, 0.04, 0.38, 0.5),
    "dress": (0.98, 0.0, 0.34, 0.06, 0.12, 0.38, 0.6),
    "birdhouse": (0.96, 0.0, 0.32, 0.12, 0.06, 0.4, 0.5),
}


def poster_half_width(shape: Float[Array, "4"]) -> Field:
    """Half-width of a poster: three in four are square, the others taller than wide."""
    return jnp.where(shape[0] < 0.75, 1.0, mix(0.66, 0.9, (shape[0] - 0.75) / 0.25))


def outline(kind: Int[Array, ""], shape: Float[Array, "4"], u: Field, v: Field) -> Outline:
    """Body and accent of one product at local coordinates (u, v)."""
    return switch(kind, list(KINDS.values()), shape, u, v)


def _column(kind: Int[Array, ""], index: int) -> Field:
    return choose(kind, [_LAYOUT[name][index] for name in NAMES])


def lowest_point(kind: Int[Array, ""], shape: Float[Array, "4"]) -> Field:
    """Local v of the line a standing product rests on."""
    fixed = _column(kind, 0)
    of_shape = {
        "mug": mix(0.78, 0.95, shape[0]),
        "cushion": mix(0.72, 0.95, shape[0]),
        "parcel": mix(0.66, 0.95, shape[0]),
        "plate": mix(0.84, 0.97, shape[0]),
    }
    for name, value in of_shape.items():
        fixed = jnp.where(kind == NAMES.index(name), value, fixed)
    return fixed


def logo_room(kind: Int[Array, ""]) -> LogoRoom:
    """Where the logo goes on a product of this kind."""
    return LogoRoom(*(_column(kind, index) for index in range(1, 6)))


def bulge(kind: Int[Array, ""]) -> Field:
    """How round the product looks when lit, 0 = flat to 1 = a ball."""
    return _column(kind, 6)
