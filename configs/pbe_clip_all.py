"""Paint by Example with all of CLIP's tokens (table 2)."""

from dataclasses import replace

from configs.pbe_clip_cls import CONFIG as PBE_CLIP_CLS
from dtc_jax.config import ReferenceConfig

CONFIG = replace(
    PBE_CLIP_CLS,
    name="pbe_clip_all",
    model=replace(PBE_CLIP_CLS.model, reference=ReferenceConfig(tokens="all", projection="mapper")),
)
