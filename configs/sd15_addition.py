"""The paper's sizes with ControlNet's fusion: the hint's features are added (table 1)."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax.config import FusionConfig

CONFIG = replace(
    SD15,
    name="sd15_addition",
    model=replace(SD15.model, fusion=FusionConfig(kind="addition")),
)
