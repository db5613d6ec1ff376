"""A scene: room or landscape, other objects, light, the product's pose, and the kind of mask, drawn from one key.

Nothing in a scene depends on the product, so that any product can be rendered in any scene at the same pose.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from dtc_jax.data.procedural.colors import COLOR_DRAWS, any_color
from dtc_jax.data.procedural.geometry import mix

WALLS = ("plain", "stripes", "bricks", "tiles", "wainscot", "dots", "planks", "blurred", "sky")
FLOORS = ("plain", "planks", "tiles", "rug", "grass")
OBJECTS = ("window", "picture", "cabinet", "ball", "lamp", "plant")
ON_WALL = 2
"""Objects before this index hang on a wall, the others stand."""
SUPPORTS = ("floor", "table", "wall")
MASK_KINDS = ("fine", "box")
OBJECT_COUNT = 3

MAX_TURN_DEGREES = 12.0
_TURN_SIGMA_DEGREES = 3.0
_WHITE = (0.9, 0.9, 0.88)
_SKY, _GRASS = WALLS.index("sky"), FLOORS.index("grass")


class Scene(NamedTuple):
    """Lengths are shares of the image's side, x to the right, y downward; every field has the same leading axes."""

    wall: Int[Array, ""]
    wall_colors: Float[Array, "3 3"]
    wall_parameters: Float[Array, "6"]
    floor: Int[Array, ""]
    floor_colors: Float[Array, "2 3"]
    floor_parameters: Float[Array, "4"]
    horizon: Float[Array, ""]
    """y of the line where the floor begins."""
    support: Int[Array, ""]
    """0 the product stands on the floor, 1 on a table, 2 hangs on the wall."""
    table_color: Float[Array, "3"]
    table_half_width: Float[Array, ""]
    objects: Int[Array, "n"]
    object_places: Float[Array, "n 4"]
    """Centre x, centre y, half-width, half-height."""
    object_colors: Float[Array, "n 2 3"]
    """Body and detail. What is white in most homes is white here, and shows the light's colour and strength."""
    light_direction: Float[Array, "3"]
    """Unit vector towards the light; its third part points at the viewer."""
    light_color: Float[Array, "3"]
    """Colour times strength: what a white surface that faces the light would look like."""
    ambient: Float[Array, ""]
    falloff: Float[Array, ""]
    """How much brighter the light's side of the picture is."""
    shade_edge: Float[Array, "4"]
    """A large soft shadow over part of the picture: angle in radians, offset from the product, softness, darkness
    (0 = none)."""
    center_x: Float[Array, ""]
    base_y: Float[Array, ""]
    """y of the product's lowest point."""
    scale: Float[Array, ""]
    """Half of the product's larger side."""
    narrowing: Float[Array, ""]
    """Width of the product as seen over its true width, 0.55 to 0.82: it is turned a little about its upright axis."""
    turn: Float[Array, ""]
    """Radians, at most 12 degrees either way."""
    mask_kind: Int[Array, ""]


def _any_of(draw: Float[Array, "*shape"], count: int) -> Int[Array, "*shape"]:
    return jnp.minimum(jnp.floor(draw * count), count - 1).astype(jnp.int32)


def sample_turn(draw: Float[Array, ""]) -> Float[Array, ""]:
    """A turn in radians from a uniform draw: normal with sigma 3 degrees, truncated at 12."""
    limit = MAX_TURN_DEGREES / _TURN_SIGMA_DEGREES
    edge = jax.scipy.special.erf(limit / jnp.sqrt(2.0))
    normal = jnp.sqrt(2.0) * jax.scipy.special.erfinv(edge * (2 * draw - 1))
    return jnp.deg2rad(_TURN_SIGMA_DEGREES) * jnp.clip(normal, -limit, limit)


def sample_scene(key: Shaped[Array, ""]) -> Scene:
    """A scene from a key."""
    # all numbers from one call, which keeps compilation short
    draws = jax.random.uniform(key, (16 + 12 + 12 + 5 * OBJECT_COUNT + COLOR_DRAWS * (7 + 2 * OBJECT_COUNT),))
    layout, pose, light, rest = draws[:16], draws[16:28], draws[28:40], draws[40:]
    props = rest[: 5 * OBJECT_COUNT].reshape(OBJECT_COUNT, 5)
    colors = any_color(rest[5 * OBJECT_COUNT :].reshape(-1, COLOR_DRAWS))

    scale = mix(0.29, 0.36, pose[0])
    center_x = mix(scale + 0.03, 0.97 - scale, mix(0.1, 0.9, pose[1]))
    support = jnp.where(pose[2] < 0.4, 0, jnp.where(pose[2] < 0.7, 1, 2)).astype(jnp.int32)
    standing_base = mix(jnp.maximum(2 * scale + 0.05, 0.72), 0.94, pose[3])
    hanging_base = mix(2 * scale + 0.05, 0.94, pose[3])
    base_y = jnp.where(support == 2, hanging_base, standing_base)
    horizon = jnp.where(support == 2, mix(0.82, 1.02, layout[0]), base_y - mix(0.06, 0.3, layout[0]))

    outdoor = layout[1] < 0.18
    wall = jnp.where(outdoor, _SKY, _any_of(layout[2], _SKY))
    floor = jnp.where(outdoor & (layout[3] < 0.7), _GRASS, _any_of(layout[4], _GRASS))
    sky = jnp.stack([jnp.array([0.35, 0.55, 0.85]), jnp.array([0.78, 0.85, 0.9]), jnp.array([0.9, 0.9, 0.92])])
    grass = jnp.stack([jnp.array([0.3, 0.5, 0.18]), jnp.array([0.62, 0.55, 0.38])])
    # walls and floors are calmer than goods: pulled towards grey, and the wall's second colour towards its first
    calm = mix(colors[:5], jnp.array([0.62, 0.6, 0.57]), 0.35)
    wall_colors = jnp.stack([calm[0], mix(calm[0], calm[1], 0.55), calm[2]])
    wood = jnp.array([0.55, 0.38, 0.24])
    floor_colors = jnp.stack([mix(calm[3], wood, 0.4), mix(calm[3], calm[4], 0.6)])

    kinds = _any_of(props[:, 0], len(OBJECTS))
    kinds = jnp.where(outdoor & (kinds < ON_WALL), kinds + 3, kinds)  # no windows in the sky
    on_wall = kinds < ON_WALL
    side = jnp.arange(OBJECT_COUNT) % 2 + 0.0
    half_width = mix(0.08, 0.18, props[:, 3])
    half_height = jnp.where(kinds == 3, half_width, jnp.where(kinds >= 4, 1.6, 1.2) * mix(0.09, 0.17, props[:, 4]))
    white_body = ((kinds == OBJECTS.index("window")) | (kinds == OBJECTS.index("plant")))[:, None]
    object_colors = mix(colors[7:].reshape(OBJECT_COUNT, 2, 3), 0.6, 0.2)
    body_colors = jnp.where(white_body, jnp.array(_WHITE), object_colors[:, 0])
    object_x = jnp.abs(side - mix(-0.05, 0.36, props[:, 1]))
    object_y = jnp.where(on_wall, mix(0.05, 0.4, props[:, 2]), horizon + 0.05 * props[:, 2] - half_height + 0.02)

    elevation = jnp.stack([mix(-0.95, 0.95, light[0]), mix(-0.75, -0.15, light[1]), mix(0.3, 0.7, light[2])])
    warmth = 2 * light[3] - 1
    warm, cool = jnp.array([1.15, 0.88, 0.55]), jnp.array([0.68, 0.92, 1.18])
    tint = jnp.where(warmth > 0, mix(1.0, warm, warmth), mix(1.0, cool, -warmth))
    dark_part = jnp.where(light[5] < 0.6, mix(0.35, 0.65, light[6]), 0.0)
    return Scene(
        wall=wall,
        wall_colors=jnp.where(outdoor, sky, wall_colors),
        wall_parameters=layout[5:11],
        floor=floor,
        floor_colors=jnp.where(floor == _GRASS, mix(floor_colors, grass, 0.8), floor_colors),
        floor_parameters=layout[11:15],
        horizon=horizon,
        support=support,
        table_color=mix(colors[5], wood, 0.5),
        table_half_width=scale * mix(1.15, 1.7, layout[15]),
        objects=kinds,
        object_places=jnp.stack([object_x, object_y, half_width, half_height], axis=-1),
        object_colors=jnp.stack([body_colors, object_colors[:, 1]], axis=1),
        light_direction=elevation / jnp.sqrt((elevation**2).sum()),
        light_color=tint * mix(0.6, 1.25, light[4]),
        ambient=mix(0.3, 0.55, light[7]),
        falloff=mix(0.1, 0.55, light[8]),
        shade_edge=jnp.stack(
            [2 * jnp.pi * light[9], mix(-0.14, 0.14, light[10]), mix(0.06, 0.25, light[11]), dark_part]
        ),
        center_x=center_x,
        base_y=base_y,
        scale=scale,
        narrowing=mix(0.55, 0.82, pose[11]),
        turn=sample_turn(pose[4]),
        mask_kind=(pose[5] < 0.5).astype(jnp.int32),
    )
