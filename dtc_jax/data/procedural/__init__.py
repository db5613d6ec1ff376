"""A procedural world of products and scenes with exact truth, in pure JAX: the data of the tiny model and of tests.

``sample_product`` and ``sample_scene`` draw from keys, ``render_reference`` and ``render_scene`` draw pictures, and
``sample_batch`` makes training batches in which sample i is a pure function of (seed, i).
"""

from dtc_jax.data.procedural.baseline import masked_error, naive_paste
from dtc_jax.data.procedural.product import (
    HELD_OUT_START,
    Product,
    hard_variant,
    held_out_id,
    product_key,
    sample_product,
)
from dtc_jax.data.procedural.render import (
    ReferencePose,
    render_reference,
    render_scene,
    sample_reference_pose,
    scene_mask,
)
from dtc_jax.data.procedural.sample import render_sample, sample_batch, sample_identity, sample_labels
from dtc_jax.data.procedural.scene import Scene, sample_scene

__all__ = [
    "HELD_OUT_START",
    "Product",
    "ReferencePose",
    "Scene",
    "hard_variant",
    "held_out_id",
    "masked_error",
    "naive_paste",
    "product_key",
    "render_reference",
    "render_sample",
    "render_scene",
    "sample_batch",
    "sample_identity",
    "sample_labels",
    "sample_product",
    "sample_reference_pose",
    "sample_scene",
    "scene_mask",
]
