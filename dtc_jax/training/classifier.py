"""The small VGG's pretraining task: read the generated world's own labels off the scene.

VGG-19's features come from ImageNet; the narrow VGG has none, so it learns features from labels that the generator
knows exactly. The heads are needed here only and are not part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dtc_jax.config import ModelConfig
from dtc_jax.data.procedural import colors, patterns, product, scene, silhouettes
from dtc_jax.models.initialize import initialize
from dtc_jax.models.vgg import VGG, VGGClassifier

LABEL_CLASSES: Mapping[str, int] = {
    "silhouette": len(silhouettes.NAMES),
    "pattern": len(patterns.NAMES),
    "colors": colors.COLOR_BINS,
    "wall": len(scene.WALLS),
    "floor": len(scene.FLOORS),
    "support": len(scene.SUPPORTS),
}
"""Classes of each categorical label; `colors` has one for each of the palette's colours."""


def heads(palette_colors: int = 4, dtype: Any = jnp.float32) -> VGGClassifier:
    """One linear head per label."""
    sizes = {**LABEL_CLASSES, "logo": product.LOGO_CELLS**2}
    sizes["colors"] = LABEL_CLASSES["colors"] * palette_colors
    return VGGClassifier(sizes, dtype)


def init_heads(config: ModelConfig, key: Key[Array, ""]) -> PyTree:
    """First parameters of the heads, on the host."""
    size = config.image_size
    vgg = VGG(config.vgg)

    def shapes(images: Array) -> PyTree:
        features, _ = vgg.init_with_output(jax.random.key(0), images, method="final_features")
        return heads().init(jax.random.key(0), features)["params"]

    return initialize({"heads": jax.eval_shape(shapes, jnp.zeros((1, size, size, 3)))}, key)["heads"]


def classification_losses(
    logits: Mapping[str, Float[Array, "b n"]], labels: Mapping[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy over the labels, and the share of right answers for each."""
    losses, accuracy = [], {}
    for name, label in labels.items():
        output = logits[name]
        if jnp.issubdtype(label.dtype, jnp.integer):
            output = output.reshape(*label.shape, -1)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(output, label).mean())
            accuracy[name] = jnp.mean(output.argmax(-1) == label)
        else:
            losses.append(optax.sigmoid_binary_cross_entropy(output, label).mean())
            accuracy[name] = jnp.mean((output > 0) == (label > 0.5))
    return jnp.mean(jnp.stack(losses)), accuracy
