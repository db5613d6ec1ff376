"""The shipped model with addition (ControlNet) in place of FiLM, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY
from dtc_jax.config import FusionConfig

CONFIG = replace(
    TINY,
    name="tiny_addition",
    model=replace(TINY.model, fusion=FusionConfig(kind="addition")),
)
