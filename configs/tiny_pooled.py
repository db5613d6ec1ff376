"""The shipped model with one gamma and beta per channel (the FiLM paper's), all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY
from dtc_jax.config import FusionConfig

CONFIG = replace(
    TINY,
    name="tiny_pooled",
    model=replace(TINY.model, fusion=FusionConfig(pooled=True)),
)
