"""Training samples of the procedural world: sample i is a pure function of (seed, i)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped, UInt8, UInt32

from dtc_jax.data.hints import Fit, Region, hint_box_jax, stitch_jax
from dtc_jax.data.procedural.colors import color_bin
from dtc_jax.data.procedural.product import HELD_OUT_START, Product, product_key, sample_product
from dtc_jax.data.procedural.render import (
    ReferencePose,
    render_reference,
    render_scene,
    sample_reference_pose,
    scene_mask,
)
from dtc_jax.data.procedural.scene import Scene, sample_scene


def to_uint8(image: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[0, 1] to [0, 255], rounded."""
    return jnp.floor(jnp.clip(image, 0.0, 1.0) * 255 + 0.5).astype(jnp.uint8)


def sample_labels(product: Product, scene: Scene) -> dict[str, Array]:
    """What is to be seen in a sample, for training a small classifier: int32 classes, and ``logo`` float32 [25]."""
    return {
        "silhouette": product.silhouette,
        "pattern": product.pattern,
        "colors": jax.vmap(color_bin)(product.palette),
        "logo": product.logo.reshape(-1).astype(jnp.float32),
        "wall": scene.wall,
        "floor": scene.floor,
        "support": scene.support,
    }


def render_sample(
    product: Product,
    scene: Scene,
    reference_pose: ReferencePose,
    size: int = 64,
    reference_size: int = 64,
    fit: Fit = "contain",
    trim: bool = True,
    region: Region = "largest_rectangle",
) -> dict[str, Any]:
    """One sample.

    Returns:
        ``scene`` [size, size, 3] (the truth: the product is in it), ``reference`` [r, r, 3] and ``hint``
        [size, size, 3], uint8 RGB; ``mask`` [size, size, 1] uint8 {0, 1}, 1 = fill; ``labels``, see
        :func:`sample_labels`.
    """
    image, alpha = render_scene(product, scene, size)
    mask = scene_mask(alpha, scene)
    reference = to_uint8(render_reference(product, reference_size, reference_pose))
    hint = stitch_jax(reference, hint_box_jax(mask, region), (size, size), fit, trim)
    return {
        "scene": to_uint8(image),
        "mask": mask[..., None].astype(jnp.uint8),
        "reference": reference,
        "hint": jnp.floor(hint + 0.5).astype(jnp.uint8),
        "labels": sample_labels(product, scene),
    }


def sample_identity(
    index: Integer[Array, ""] | int, seed: int | Shaped[Array, ""] = 0, held_out: bool = False
) -> tuple[UInt32[Array, ""], Shaped[Array, ""], Shaped[Array, ""]]:
    """What sample ``index`` is made of: (product id, scene key, reference pose key).

    Product ids are drawn from the 2**31 of their split. Held-out samples share no product and no scene with training.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    key = jax.random.fold_in(jax.random.fold_in(key, int(held_out)), jnp.uint32(index))
    id_key, scene_key, pose_key = jax.random.split(key, 3)
    bits = jax.random.bits(id_key, dtype=jnp.uint32)
    product_id = bits | jnp.uint32(HELD_OUT_START) if held_out else bits & jnp.uint32(HELD_OUT_START - 1)
    return product_id, scene_key, pose_key


def sample_batch(
    seed: int | Shaped[Array, ""],
    start_index: Integer[Array, ""] | int,
    batch_size: int,
    size: int = 64,
    reference_size: int = 64,
    held_out: bool = False,
    fit: Fit = "contain",
    trim: bool = True,
    vectorize: bool | None = None,
    region: Region = "largest_rectangle",
) -> dict[str, Any]:
    """Samples ``start_index`` .. ``start_index + batch_size - 1`` of the endless order that ``seed`` names.

    Sample i is the same in whatever batch or process it is made. Jit it with everything but ``start_index`` (and a
    ``seed`` given as a key) static.

    Args:
        fit, trim, region: how the reference is stitched into the hint; see `dtc_jax.config.HintConfig`.
        vectorize: all samples at once (``jax.vmap``), as accelerators like it, or one after the other
            (``jax.lax.map``), which on a CPU is several times faster: it computes no kind of shape or pattern that a
            sample does not have. None decides by the default backend.

    Returns:
        :func:`render_sample`'s dict with a leading batch axis, plus ``index`` and ``product_id`` [batch] uint32.
    """

    indices = jnp.uint32(start_index) + jnp.arange(batch_size, dtype=jnp.uint32)

    def draw(index: UInt32[Array, ""]) -> tuple[UInt32[Array, ""], Product, Scene, ReferencePose]:
        product_id, scene_key, pose_key = sample_identity(index, seed, held_out)
        product = sample_product(product_key(product_id))
        return product_id, product, sample_scene(scene_key), sample_reference_pose(pose_key)

    def render(parts: tuple[Product, Scene, ReferencePose]) -> dict[str, Any]:
        return render_sample(*parts, size, reference_size, fit, trim, region)

    # drawn for all samples first: inside the loop XLA would draw numbers anew for every pixel that needs them
    product_ids, products, scenes, poses = jax.vmap(draw)(indices)
    parts = (products, scenes, poses)
    if vectorize is None:
        vectorize = jax.default_backend() != "cpu"
    samples = jax.vmap(render)(parts) if vectorize else jax.lax.map(render, parts)
    return {**samples, "index": indices, "product_id": product_ids}
