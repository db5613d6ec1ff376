"""The paper's sizes with cross-attention to the hint's features as the fusion (table 1)."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax.config import FusionConfig

CONFIG = replace(
    SD15,
    name="sd15_cross_attention",
    model=replace(SD15.model, fusion=FusionConfig(kind="cross_attention")),
)
