"""Paint by Example itself: CLIP's class token through its own mapper, and a null vector (table 2)."""

from dataclasses import replace

from configs.pbe_dinov2 import CONFIG as PBE_DINOV2
from dtc_jax import presets
from dtc_jax.config import ReferenceConfig

CONFIG = replace(
    PBE_DINOV2,
    name="pbe_clip_cls",
    model=replace(
        PBE_DINOV2.model,
        reference_encoder=presets.clip_vit_large_patch14().vision,
        reference=ReferenceConfig(tokens="cls", projection="mapper"),
    ),
)
