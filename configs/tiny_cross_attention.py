"""The shipped model with cross-attention in place of FiLM, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY
from dtc_jax.config import FusionConfig

CONFIG = replace(
    TINY,
    name="tiny_cross_attention",
    model=replace(TINY.model, fusion=FusionConfig(kind="cross_attention")),
)
