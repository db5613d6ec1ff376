"""The best Paint by Example: all of DINOv2's tokens and the perceptual loss, no hint (table 2)."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax.config import HintConfig

CONFIG = replace(
    SD15,
    name="pbe_dinov2_perceptual",
    model=replace(SD15.model, hint=HintConfig(kind="none")),
)
