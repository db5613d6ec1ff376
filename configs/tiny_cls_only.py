"""Paint by Example with the reference's class token alone, all else as in tiny_no_hint."""

from dataclasses import replace

from configs.tiny_no_hint import CONFIG as TINY_NO_HINT
from dtc_jax.config import ReferenceConfig

CONFIG = replace(
    TINY_NO_HINT,
    name="tiny_cls_only",
    model=replace(TINY_NO_HINT.model, reference=ReferenceConfig(tokens="cls")),
)
