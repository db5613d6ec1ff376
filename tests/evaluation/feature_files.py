"""Feature networks of the smallest sizes, with random weights, in the files that they are published in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtc_jax.config import CLIPVisionConfig, DINOv2Config, InceptionConfig, VGGConfig
from dtc_jax.weights import clip, dinov2, inception, lpips
from dtc_jax.weights.mapping import Layout, Shapes, export_tensors
from dtc_jax.weights.tensors import write_tensors

VISION = CLIPVisionConfig(
    image_size=32,
    patch_size=16,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=1,
    projection_dim=12,
)
DINOV2 = DINOv2Config(
    image_size=28,
    position_image_size=None,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    mlp_ratio=1,
    use_swiglu_ffn=False,
)
INCEPTION = InceptionConfig(channel_divisor=16)
VGG16 = VGGConfig(block_channels=(4, 4, 4, 4, 4), convolutions_per_block=(1, 1, 1, 1, 1))
SLICES = ((0,), (3,), (6,), (9,), (12,))


def random_params(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    params = {}
    for path, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[:-1]))) if path.endswith("kernel") else 1
        params[path] = (random.normal(size=shape) / fan_in**0.5).astype(np.float32)
        if path.endswith(("running_var", "scale")) or path.startswith("lin_"):
            params[path] = np.abs(params[path]) + np.float32(0.5)
    return params


def write_networks(folder: Path) -> dict[str, str]:
    """One file per kind; their paths."""
    files: dict[str, tuple[Layout, Shapes]] = {
        "clip": (clip.VISION_WITH_PROJECTION, clip.vision_shapes(VISION, with_projection=True)),
        "dinov2": (dinov2.FACEBOOK, dinov2.shapes(DINOV2)),
        "inception": (inception.PYTORCH_FID, inception.shapes(INCEPTION)),
        "lpips": (lpips.whole_layout(SLICES), lpips.shapes(VGG16)),
    }
    for seed, (kind, (layout, shapes)) in enumerate(files.items()):
        write_tensors(folder, kind, export_tensors(layout, random_params(shapes, seed)))
    return {kind: str(folder / f"{kind}.safetensors") for kind in files}
