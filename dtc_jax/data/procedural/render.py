"""Pictures of products: alone on white (the reference) and lit in a scene (the truth), with the exact mask.

Resolution is a parameter; all geometry lives in units of the picture. Images are float RGB in [0, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from dtc_jax.data.masks import bounding_box_jax, box_mask_jax
from dtc_jax.data.procedural import patterns, silhouettes
from dtc_jax.data.procedural.background import draw_background, illumination
from dtc_jax.data.procedural.geometry import Field, box, coverage, ellipse, mix, pixel_grid
from dtc_jax.data.procedural.product import LOGO_CELLS, Product
from dtc_jax.data.procedural.scene import MASK_KINDS, SUPPORTS, Scene, sample_turn

VISIBLE = 0.02
"""A pixel belongs to the product if it covers more than this share of it."""

_STUDIO_LIGHT = (0.15, -0.3, 0.94)
_STUDIO_AMBIENT = 0.6


class ReferencePose(NamedTuple):
    """How the product sits in its reference; lengths are shares of the picture's side."""

    scale: Float[Array, ""]
    """Half of the product's larger side: 0.375 to 0.475."""
    turn: Float[Array, ""]
    """Radians, at most 3 degrees."""
    shift: Float[Array, "2"]
    """Of the centre, (x, y)."""


def sample_reference_pose(key: Shaped[Array, ""]) -> ReferencePose:
    """Canonical, but for a tiny turn and a centre slightly off."""
    draws = jax.random.uniform(key, (4,))
    scale = mix(0.375, 0.475, draws[0])
    return ReferencePose(scale, 0.25 * sample_turn(draws[1]), 0.8 * (0.49 - scale) * (2 * draws[2:4] - 1))


def _logo_ink(product: Product, u: Field, v: Field, width: Field) -> tuple[Field, Field]:
    """Coverage of the logo's cells and of the patch under them."""
    center_u, center_v, half_side = product.logo_place
    cell = 2 * half_side / LOGO_CELLS
    x, y = (u - center_u) / cell + LOGO_CELLS / 2, (v - center_v) / cell + LOGO_CELLS / 2
    columns = [coverage(jnp.abs(x - i - 0.5) - 0.5, width / cell) for i in range(LOGO_CELLS)]
    bits = product.logo.astype(jnp.float32)
    ink = jnp.zeros_like(x)
    for j in range(LOGO_CELLS):
        row = sum(bits[j, i] * columns[i] for i in range(LOGO_CELLS))
        ink = ink + coverage(jnp.abs(y - j - 0.5) - 0.5, width / cell) * row
    patch = coverage(box(u - center_u, v - center_v, half_side * 1.12, half_side * 1.12, 0.03), width)
    return ink, patch


def _albedo(product: Product, shapes: silhouettes.Outline, u: Field, v: Field, width: Field) -> Float[Array, "h w 3"]:
    first, second, third, ink_color = product.palette
    weights = patterns.pattern_weights(product.pattern, product.pattern_parameters, u, v, width)
    color = mix(mix(first, second, weights.second[..., None]), third, weights.third[..., None])
    ink, patch = _logo_ink(product, u, v, width)
    cut_out = product.logo_style == 1
    has_patch = cut_out | ~patterns.is_plain(product.pattern)
    patch_color, cell_color = jnp.where(cut_out, ink_color, first), jnp.where(cut_out, first, ink_color)
    color = mix(color, patch_color, (patch * has_patch)[..., None])
    color = mix(color, cell_color, ink[..., None])
    return mix(color, third, coverage(shapes.accent, width)[..., None])


def _shading(
    product: Product, shapes: silhouettes.Outline, u: Field, v: Field, light: Field, ambient: Field
) -> tuple[Field, Field]:
    """Lambert's law on a bulging body, darker rims, and a highlight: (factor, added white)."""
    roundness = silhouettes.bulge(product.silhouette)
    normal_x = roundness * jnp.clip(u, -1.0, 1.0) * 0.9
    normal_y = roundness * jnp.clip(v, -1.0, 1.0) * 0.55
    normal_z = jnp.sqrt(jnp.maximum(1 - normal_x**2 - normal_y**2, 0.05))
    facing = jnp.maximum(normal_x * light[0] + normal_y * light[1] + normal_z * light[2], 0.0)
    depth = jnp.minimum(jnp.minimum(shapes.body, shapes.accent), 0.0)
    # a seam where body and accent meet, as well as the outer rim
    rim = 1 - 0.2 * jnp.exp(depth / 0.06) - 0.1 * jnp.exp(-jnp.abs(shapes.accent) / 0.03)
    shine = product.gloss * jnp.exp(-((u - 0.45 * light[0]) ** 2 + (v - 0.6 * light[1]) ** 2) / 0.06)
    return (ambient + 1.2 * (1 - ambient) * facing) * rim, shine * mix(0.4, 1.0, roundness)


def render_reference(product: Product, size: int, pose: ReferencePose) -> Float[Array, "size size 3"]:
    """The product alone on white, evenly lit. A square poster fills the whole frame: no white is left of it."""
    x, y = pixel_grid(size, size)
    full_frame = (product.silhouette == silhouettes.POSTER) & (silhouettes.poster_half_width(product.shape) == 1.0)
    scale = jnp.where(full_frame, 0.5, pose.scale)
    turn = jnp.where(full_frame, 0.0, pose.turn)
    shift = jnp.where(full_frame, 0.0, pose.shift)
    u, v = _local(x - 0.5 - shift[0], y - 0.5 - shift[1], scale, turn)
    width = 1 / (size * scale)
    shapes = silhouettes.outline(product.silhouette, product.shape, u, v)
    alpha = jnp.maximum(coverage(jnp.minimum(*shapes), width), full_frame)
    factor, shine = _shading(product, shapes, u, v, jnp.array(_STUDIO_LIGHT), jnp.float32(_STUDIO_AMBIENT))
    color = _albedo(product, shapes, u, v, width) * jnp.minimum(factor, 1.0)[..., None]
    color = jnp.minimum(color + 0.4 * shine[..., None] * (1 - color), 0.95)
    return mix(1.0, color, alpha[..., None])


def _local(x: Field, y: Field, scale: Field, turn: Field) -> tuple[Field, Field]:
    cosine, sine = jnp.cos(turn), jnp.sin(turn)
    return (cosine * x + sine * y) / scale, (cosine * y - sine * x) / scale


def _in_scene(product: Product, scene: Scene, x: Field, y: Field) -> tuple[Field, Field, Field]:
    """Local coordinates of a picture's points, and the local v of the product's lowest point."""
    base = silhouettes.lowest_point(product.silhouette, product.shape)
    u, v = _local(x - scene.center_x, y - (scene.base_y - base * scene.scale), scene.scale, scene.turn)
    return u / scene.narrowing, v, base


def _shadow_coordinates(scene: Scene, u: Field, v: Field, base: Field) -> tuple[Field, Field]:
    """Where on the product the ray from each point to the light passes, in local coordinates.

    The product's shadow falls on the wall behind it if it hangs, else back over the ground that it stands on.
    """
    light = scene.light_direction
    hangs = scene.support == SUPPORTS.index("wall")
    # a point at height h above the ground throws its shadow h * squash further back, and sideways from the light
    height = (base - v) / mix(0.3, 0.55, light[2])
    standing_u, standing_v = u + 0.9 * light[0] * height, base - height
    return jnp.where(hangs, u + 0.35 * light[0], standing_u), jnp.where(hangs, v + 0.3 * light[1], standing_v)


def render_scene(
    product: Product, scene: Scene, size: int
) -> tuple[Float[Array, "size size 3"], Float[Array, "size size"]]:
    """The photo with the product in it, and the product's exact coverage of each pixel in [0, 1]."""
    x, y = pixel_grid(size, size)
    u, v, base = _in_scene(product, scene, x, y)
    shadow_u, shadow_v = _shadow_coordinates(scene, u, v, base)
    both = silhouettes.outline(product.silhouette, product.shape, jnp.stack([u, shadow_u]), jnp.stack([v, shadow_v]))
    shapes, blockers = (silhouettes.Outline(both.body[i], both.accent[i]) for i in range(2))

    contact = coverage(ellipse(u, v - base + 0.02, 0.75, 0.12), 0.22) * (scene.support != SUPPORTS.index("wall"))
    shadow = jnp.maximum(coverage(jnp.minimum(*blockers), 0.22), 0.9 * contact)
    background, takes_shadow = draw_background(scene, x, y, 1 / size)
    background = background * (1 - takes_shadow * shadow)[..., None]

    width = 1 / (size * scene.scale)
    alpha = coverage(jnp.minimum(*shapes), width)
    factor, shine = _shading(product, shapes, u, v, scene.light_direction, scene.ambient)
    color = _albedo(product, shapes, u, v, width) * factor[..., None] + shine[..., None]
    image = mix(background, color, alpha[..., None]) * illumination(scene, x, y)
    return jnp.clip(image, 0.0, 1.0), alpha


def scene_mask(alpha: Float[Array, "size size"], scene: Scene) -> Bool[Array, "size size"]:
    """The region to fill: the pixels that show the product, or their bounding box.

    Exactly those: a margin that differs from photo to photo would hide the scale of what is to be painted.
    """
    size = alpha.shape[0]
    inside = alpha > VISIBLE
    boxed = box_mask_jax(bounding_box_jax(inside), size, size)
    return jnp.where(scene.mask_kind == MASK_KINDS.index("box"), boxed, inside)
