"""Paint by Example with all of DINOv2's tokens in place of CLIP's (table 2)."""

from dataclasses import replace

from configs.pbe_dinov2_perceptual import CONFIG as PBE_DINOV2_PERCEPTUAL

CONFIG = replace(
    PBE_DINOV2_PERCEPTUAL,
    name="pbe_dinov2",
    loss=replace(PBE_DINOV2_PERCEPTUAL.loss, perceptual_weight=0.0),
)
