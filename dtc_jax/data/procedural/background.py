"""What surrounds a product: wall or sky, floor, table, and a few other objects, before light falls on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dtc_jax.data.procedural.geometry import (
    Field,
    bands,
    box,
    coverage,
    ellipse,
    length,
    mix,
    smooth_union,
    switch,
    trapezoid,
)
from dtc_jax.data.procedural.patterns import smooth_noise
from dtc_jax.data.procedural.scene import FLOORS, OBJECTS, ON_WALL, SUPPORTS, WALLS, Scene


def _over(image: Field, color: Field, alpha: Field) -> Field:
    return mix(image, color, alpha[..., None])


def _darken(image: Field, share: Field) -> Field:
    return image * (1 - share[..., None])


def _plain_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    return 0.6 * y, 0.0


def _striped_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    frequency = mix(4.0, 9.0, p[0])
    return bands(frequency * x + p[1], mix(0.25, 0.6, p[2]), pixel * frequency), 0.0


def _brick_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    frequency = mix(4.0, 8.0, p[0])
    down = 1.6 * frequency * y + p[1]
    along = frequency * 0.8 * x + 0.5 * (jnp.floor(down) % 2) + p[2]
    joints = bands(down + 0.5, 0.16, 1.6 * frequency * pixel), bands(along, 0.08, 0.8 * frequency * pixel)
    return jnp.maximum(*joints), 0.0


def _tiled_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    frequency = mix(4.0, 9.0, p[0])
    step = pixel * frequency
    return jnp.maximum(bands(frequency * x + p[1], 0.1, step), bands(frequency * y + p[2], 0.1, step)), 0.0


def _wainscot(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    rail = horizon - mix(0.12, 0.35, p[3])
    return coverage(rail - y, pixel), coverage(jnp.abs(y - rail) - 0.012, pixel)


def _dotted_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    frequency = mix(4.0, 8.0, p[0])
    x, y = frequency * x + p[1], frequency * y + p[2]
    return coverage(length(x - jnp.floor(x) - 0.5, y - jnp.floor(y) - 0.5) - 0.2, pixel * frequency), 0.0


def _planked_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    frequency = mix(4.0, 9.0, p[0])
    return bands(frequency * x + p[1], 0.07, pixel * frequency), 0.0


def _blurred_wall(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    second = jnp.clip(0.5 + 0.9 * smooth_noise(6.0 * x, 6.0 * y, p[1:5]), 0.0, 1.0)
    return second, jnp.clip(smooth_noise(5.0 * y, 7.0 * x, p[2:6]), 0.0, 1.0)


def _sky(p: Field, horizon: Field, pixel: Field, x: Field, y: Field) -> tuple[Field, Field]:
    clouds = jnp.clip(1.2 * smooth_noise(4.0 * x, 7.0 * y, p[1:5]) - 0.1, 0.0, 0.85)
    return jnp.clip(y / jnp.maximum(horizon, 0.3), 0.0, 1.0), clouds


_WALL_FUNCTIONS = {
    "plain": _plain_wall,
    "stripes": _striped_wall,
    "bricks": _brick_wall,
    "tiles": _tiled_wall,
    "wainscot": _wainscot,
    "dots": _dotted_wall,
    "planks": _planked_wall,
    "blurred": _blurred_wall,
    "sky": _sky,
}


def _wall(scene: Scene, x: Field, y: Field, pixel: float) -> Float[Array, "h w 3"]:
    functions = [_WALL_FUNCTIONS[name] for name in WALLS]
    second, third = switch(scene.wall, functions, scene.wall_parameters, scene.horizon, pixel, x, y)
    return _over(_over(scene.wall_colors[0], scene.wall_colors[1], second), scene.wall_colors[2], third)


def _plank_floor(p: Field, across: Field, along: Field, step_across: Field, step_along: Field) -> Field:
    boards = 0.3 * bands(0.75 * across, 0.5, step_across)
    return jnp.maximum(bands(1.5 * across, 0.08, 1.5 * step_across), boards)


def _tile_floor(p: Field, across: Field, along: Field, step_across: Field, step_along: Field) -> Field:
    side, other = bands(across, 0.5, step_across), bands(along, 0.5, step_along)
    return side + other - 2 * side * other


def _rug(p: Field, across: Field, along: Field, step_across: Field, step_along: Field) -> Field:
    return bands(along, mix(0.3, 0.6, p[3]), step_along)


def _grass(p: Field, across: Field, along: Field, step_across: Field, step_along: Field) -> Field:
    return jnp.clip(0.35 + 0.45 * smooth_noise(1.8 * across, 0.9 * along, p), 0.0, 1.0)


_FLOOR_FUNCTIONS = {
    "plain": lambda p, across, along, step_across, step_along: 0.5,
    "planks": _plank_floor,
    "tiles": _tile_floor,
    "rug": _rug,
    "grass": _grass,
}


def _floor(scene: Scene, x: Field, y: Field, pixel: float) -> Float[Array, "h w 3"]:
    p = scene.floor_parameters
    # ground coordinates in perspective, and what a pixel measures in them
    depth = jnp.maximum(y - scene.horizon, 0.0) + 0.22
    frequency = mix(1.2, 2.2, p[1])
    across, along = frequency * (x - mix(0.3, 0.7, p[0])) / depth, 1.1 * frequency / depth + p[2]
    step_across, step_along = pixel * frequency / depth, pixel * 1.1 * frequency / (depth * depth)
    functions = [_FLOOR_FUNCTIONS[name] for name in FLOORS]
    share = switch(scene.floor, functions, p, across, along, step_across, step_along)
    return _over(scene.floor_colors[0], scene.floor_colors[1], share)


def _frame(x: Field, y: Field, a: Field, b: Field) -> Field:
    return box(x, y, a, b, 0.008)


def _ball(x: Field, y: Field, a: Field, b: Field) -> Field:
    return ellipse(x, y, a, b)


def _standing_lamp(x: Field, y: Field, a: Field, b: Field) -> Field:
    shade = trapezoid(x, y + 0.62 * b, 0.35 * a, 0.7 * a, 0.38 * b, 0.005)
    stand = jnp.minimum(box(x, y, 0.014, b, 0.005), box(x, y - 0.97 * b, 0.4 * a, 0.03 * b, 0.003))
    return jnp.minimum(shade, stand)


def _plant(x: Field, y: Field, a: Field, b: Field) -> Field:
    leaves = jnp.minimum(ellipse(x, y + 0.4 * b, 0.8 * a, 0.6 * b), ellipse(x - 0.3 * a, y, 0.6 * a, 0.35 * b))
    return smooth_union(leaves, trapezoid(x, y - 0.65 * b, 0.55 * a, 0.4 * a, 0.35 * b, 0.01), 0.01)


_OBJECT_FUNCTIONS = {
    "window": _frame,
    "picture": _frame,
    "cabinet": _frame,
    "ball": _ball,
    "lamp": _standing_lamp,
    "plant": _plant,
}


def _window_pane(x: Field, y: Field, a: Field, b: Field) -> Field:
    return jnp.maximum(box(x, y, a - 0.018, b - 0.018, 0.002), 0.008 - jnp.minimum(jnp.abs(x), jnp.abs(y)))


_OBJECT_DETAILS = {
    "window": _window_pane,
    "picture": lambda x, y, a, b: box(x, y, a - 0.022, b - 0.022, 0.002),
    "cabinet": lambda x, y, a, b: jnp.abs(box(x, jnp.abs(y) - 0.5 * b, a - 0.02, 0.5 * b - 0.014, 0.004)) - 0.006,
    "ball": lambda x, y, a, b: jnp.abs(y + 0.3 * x) - 0.18 * b,
    "lamp": lambda x, y, a, b: y + 0.24 * b,
    "plant": lambda x, y, a, b: y - 0.32 * b,
}


def _object_distance(functions: dict, kind: Int[Array, ""], x: Field, y: Field, a: Field, b: Field) -> Field:
    calls = [lambda a, b, x, y, f=functions[name]: f(x, y, a, b) for name in OBJECTS]
    return switch(kind, calls, a, b, x, y)


def _detail_colors(kind: Int[Array, ""], colors: Float[Array, "2 3"]) -> Float[Array, "2 3"]:
    """Colours of an object's detail above and below the line of hills that windows and pictures show."""
    above = {
        "window": jnp.array([0.92, 0.95, 1.0]),
        "cabinet": 0.55 * colors[0],
        "lamp": jnp.array([0.95, 0.9, 0.8]),
        "plant": mix(jnp.array([0.2, 0.42, 0.2]), colors[1], 0.3),
    }
    below = {"window": jnp.array([0.6, 0.75, 0.95]), "picture": 1 - 0.7 * colors[0]}
    rows = [jnp.stack([above.get(name, colors[1]), below.get(name, above.get(name, colors[1]))]) for name in OBJECTS]
    return jnp.stack(rows)[kind]


def _add_object(
    image: Field, thing: tuple[Field, Field, Field], scene: Scene, x: Field, y: Field, pixel: float
) -> Float[Array, "h w 3"]:
    kind, (center_x, center_y, a, b), colors = thing
    light = scene.light_direction
    x, y = x - center_x, y - center_y
    on_wall = kind < ON_WALL
    # the same light for all: shadows fall away from it, close by for what hangs on the wall
    reach = jnp.where(on_wall, 0.03, 0.06)
    shadow, itself = _object_distance(
        _OBJECT_FUNCTIONS,
        kind,
        jnp.stack([x + 1.4 * reach * light[0], x]),
        jnp.stack([y + reach * light[1], y]),
        a,
        b,
    )
    contact = jnp.where(on_wall, 0.0, coverage(ellipse(x, y - b, 0.9 * a, 0.03), 0.06))
    image = _darken(image, shadow_strength(scene) * jnp.maximum(coverage(shadow, 0.05 + pixel), contact))

    above, below = _detail_colors(kind, colors)
    detail_color = _over(above, below, coverage(y - 0.25 * b + 0.5 * jnp.abs(x), 0.04))
    detail = coverage(_object_distance(_OBJECT_DETAILS, kind, x, y, a, b), pixel)
    roundness = jnp.where(kind < 3, 0.0, 0.35)
    relief = 1 + roundness * (light[0] * x / a + light[1] * y / b)
    color = _over(colors[0], detail_color, detail) * relief[..., None]
    return _over(image, color, coverage(itself, pixel))


def _add_table(image: Field, scene: Scene, x: Field, y: Field, pixel: float) -> tuple[Field, Field]:
    """The table under a standing product; also where its top is, which alone takes the product's shadow."""
    x, y = x - scene.center_x, y - scene.base_y
    half = scene.table_half_width
    top = trapezoid(x, y + 0.015, half * 0.9, half, 0.055, 0.004)
    front = box(x, y - 0.06, half, 0.022, 0.004)
    legs = jnp.maximum(box(jnp.abs(x) - half + 0.035, y - 0.5, 0.022, 0.45, 0.003), 0.06 - y)
    here = (scene.support == SUPPORTS.index("table")).astype(jnp.float32)
    under = coverage(box(x, y - 0.6, half - 0.02, 0.55), 0.06) * here
    image = _darken(image, 0.35 * under)
    image = _over(image, 0.6 * scene.table_color, coverage(legs, pixel) * here)
    image = _over(image, scene.table_color, coverage(top, pixel) * here)
    image = _over(image, 0.72 * scene.table_color, coverage(front, pixel) * here)
    return image, coverage(top, pixel)


def shadow_strength(scene: Scene) -> Field:
    return 0.75 * (1 - scene.ambient)


def draw_background(
    scene: Scene, x: Field, y: Field, pixel: float
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """The scene without the product, as albedo with the objects' own shadows.

    Args:
        scene: one scene.
        x, y: pixel centres in [0, 1].
        pixel: side of a pixel in the same units.

    Returns:
        RGB, and how strongly the product's shadow shows at each pixel, in [0, 1].
    """
    on_floor = coverage(scene.horizon - y, pixel)
    wall = _wall(scene, x, y, pixel)
    skirting = coverage(jnp.abs(y - scene.horizon + 0.012) - 0.012, pixel) * (scene.wall != WALLS.index("sky"))
    wall = _over(wall, mix(scene.wall_colors[2], 0.9, 0.4), 0.8 * skirting)
    corner_shade = 0.25 * jnp.exp(-jnp.abs(y - scene.horizon) / 0.05) * (scene.wall != WALLS.index("sky"))
    image = _darken(_over(wall, _floor(scene, x, y, pixel), on_floor), corner_shade)
    image, _ = jax.lax.scan(
        lambda image, thing: (_add_object(image, thing, scene, x, y, pixel), None),
        image,
        (scene.objects, scene.object_places, scene.object_colors),
    )
    image, table_top = _add_table(image, scene, x, y, pixel)
    takes_shadow = jnp.where(scene.support == SUPPORTS.index("table"), table_top, 1.0)
    return image, takes_shadow * shadow_strength(scene)


def illumination(scene: Scene, x: Field, y: Field) -> Float[Array, "h w 3"]:
    """The light at each pixel: its colour, brighter on its own side of the picture, less behind a shadow's edge."""
    side = scene.light_direction[0] * (x - 0.5) + scene.light_direction[1] * (y - 0.5)
    angle, offset, softness, darkness = scene.shade_edge
    edge = coverage(
        jnp.cos(angle) * (x - scene.center_x) + jnp.sin(angle) * (y - scene.base_y + scene.scale) - offset, softness
    )
    strength = (1 + 1.6 * scene.falloff * side) * (1 - darkness * edge)
    return strength[..., None] * scene.light_color
