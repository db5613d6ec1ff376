"""Evaluation cases of the procedural world: a held-out product in a scene, and the distractors to tell it from.

Case i is a pure function of (seed, i): nothing is stored, and the batch size does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8, UInt32

from dtc_jax.data.procedural import (
    Product,
    Scene,
    hard_variant,
    held_out_id,
    naive_paste,
    product_key,
    render_reference,
    render_scene,
    sample_product,
    sample_reference_pose,
    sample_scene,
    scene_mask,
)
from dtc_jax.data.procedural.sample import to_uint8
from dtc_jax.data.procedural.scene import MASK_KINDS

NUM_DISTRACTORS = 31
"""Beside the own truth: retrieval is among 32, chance 1/32."""
MAX_CASES = 2**15
"""Cases per seed: each takes 32 ids of held-out products, and a seed has 2**20 of them."""
MAX_SEED = 2**11 - 1
"""Largest seed whose ids fit into the held-out half of the uint32 range."""

_CASE_STREAM = 0x65766C
_SCENE_STREAM, _POSE_STREAM, _VARIANT_STREAM = 0, 1, 2


class Cases(NamedTuple):
    """A batch of cases as host arrays; images uint8 RGB."""

    case: UInt32[Any, "b"]
    """The case's number."""
    product_id: UInt32[Any, "b"]
    """Held-out id of the product."""
    truth: UInt8[Any, "b h w 3"]
    """The scene with the product in it."""
    mask: UInt8[Any, "b h w 1"]
    """1 = fill."""
    is_box: Bool[Any, "b"]
    """The mask is a bounding box, not a silhouette."""
    reference: UInt8[Any, "b r r 3"]
    """The product alone on white."""
    naive_paste: UInt8[Any, "b h w 3"]
    """The baseline: the reference, white keyed out, in the mask's largest rectangle, aspect kept."""
    stretched_paste: UInt8[Any, "b h w 3"]
    """A stronger one: the same, stretched over the mask's bounding box."""
    easy: UInt8[Any, "b 31 h w 3"]
    """Other held-out products in the same scene and pose."""
    hard: UInt8[Any, "b 31 h w 3"]
    """Products of the same silhouette, palette and pattern with another logo, in the same scene and pose."""


def case_product_ids(index: UInt32[Array, ""] | int, seed: UInt32[Array, ""] | int) -> UInt32[Array, "32"]:
    """Ids of case `index`: its own product's, then those of its easy distractors; no id occurs in two cases."""
    first = jnp.uint32(seed) * jnp.uint32(2**20) + jnp.uint32(index) * jnp.uint32(NUM_DISTRACTORS + 1)
    return jax.vmap(held_out_id)(first + jnp.arange(NUM_DISTRACTORS + 1, dtype=jnp.uint32))


def case_product(index: UInt32[Array, ""] | int, seed: UInt32[Array, ""] | int) -> Product:
    """The product of case `index`."""
    return sample_product(product_key(case_product_ids(index, seed)[0]))


def case_scene(index: UInt32[Array, ""] | int, seed: UInt32[Array, ""] | int) -> Scene:
    """The scene, pose and kind of mask of case `index`; independent of its product."""
    return sample_scene(jax.random.fold_in(_case_key(index, seed), _SCENE_STREAM))


def _case_key(index: UInt32[Array, ""] | int, seed: UInt32[Array, ""] | int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _CASE_STREAM), jnp.uint32(index))


def _render(product: Product, scene: Scene, size: int) -> tuple[UInt8[Array, "h w 3"], Float[Array, "h w"]]:
    image, alpha = render_scene(product, scene, size)
    return to_uint8(image), alpha


@partial(jax.jit, static_argnames=("image_size", "reference_size", "render_batch"))
def _make_case(
    index: UInt32[Array, ""],
    seed: UInt32[Array, ""],
    *,
    image_size: int,
    reference_size: int,
    render_batch: int | None,
) -> Cases:
    key = _case_key(index, seed)
    ids = case_product_ids(index, seed)
    products = jax.vmap(lambda identifier: sample_product(product_key(identifier)))(ids)
    product: Product = jax.tree.map(lambda leaf: leaf[0], products)
    scene = case_scene(index, seed)
    variant_keys = jax.random.split(jax.random.fold_in(key, _VARIANT_STREAM), NUM_DISTRACTORS)
    variants = jax.vmap(hard_variant, in_axes=(None, 0))(product, variant_keys)

    # Own product, easy and hard distractors through one renderer. A CPU draws them one by one: then it computes no kind
    # of shape or pattern that a product does not have. The last is there to make 64, which divides.
    shown = jax.tree.map(lambda a, b, c: jnp.concatenate([a, b, c[None]]), products, variants, product)
    images, alphas = jax.lax.map(lambda one: _render(one, scene, image_size), shown, batch_size=render_batch)
    truth, alpha = images[0], alphas[0]
    mask = scene_mask(alpha, scene)[..., None].astype(jnp.uint8)
    pose = sample_reference_pose(jax.random.fold_in(key, _POSE_STREAM))
    reference = to_uint8(render_reference(product, reference_size, pose))
    return Cases(
        case=index,
        product_id=ids[0],
        truth=truth,
        mask=mask,
        is_box=scene.mask_kind == MASK_KINDS.index("box"),
        reference=reference,
        naive_paste=to_uint8(naive_paste(truth, mask, reference) / 255),
        stretched_paste=to_uint8(naive_paste(truth, mask, reference, "stretch", "bounding_box") / 255),
        easy=images[1 : NUM_DISTRACTORS + 1],
        hard=images[NUM_DISTRACTORS + 1 : 2 * NUM_DISTRACTORS + 1],
    )


def make_cases(indices: Sequence[int], *, seed: int, image_size: int = 64, reference_size: int = 64) -> Cases:
    """The cases of these numbers.

    Args:
        indices: numbers of the cases, each below `MAX_CASES`.
        seed: at most `MAX_SEED`.
        image_size: height and width of the scene in pixels.
        reference_size: height and width of the reference in pixels.

    Raises:
        ValueError: a number or the seed out of range.
    """
    if not (0 <= seed <= MAX_SEED):
        raise ValueError(f"the seed of an evaluation must be in 0..{MAX_SEED}, not {seed}")
    if len(indices) == 0 or min(indices) < 0 or max(indices) >= MAX_CASES:
        raise ValueError(f"an evaluation has at most {MAX_CASES} products; asked for case {max(indices, default=None)}")
    render_batch = None if jax.default_backend() == "cpu" else 32
    # One call a case: one compilation serves every number of cases, and device memory does not grow with it.
    made = [
        _make_case(
            np.uint32(index),
            np.uint32(seed),
            image_size=image_size,
            reference_size=reference_size,
            render_batch=render_batch,
        )
        for index in indices
    ]
    return Cases(*(np.stack(field) for field in zip(*jax.device_get(made), strict=True)))


def evaluation_batch(start: int, count: int, *, seed: int, image_size: int = 64, reference_size: int = 64) -> Cases:
    """Cases start .. start + count - 1; see `make_cases`."""
    return make_cases(range(start, start + count), seed=seed, image_size=image_size, reference_size=reference_size)
