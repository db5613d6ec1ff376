"""The shipped model without its hint, all else equal: Paint by Example with all of the reference's tokens."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY
from dtc_jax.config import HintConfig

CONFIG = replace(
    TINY,
    name="tiny_no_hint",
    model=replace(TINY.model, hint=HintConfig(kind="none")),
    # The tokens are dropped as often as they are with a hint: alone or with it.
    loss=replace(TINY.loss, drop_tokens=TINY.loss.drop_tokens + TINY.loss.drop_both, drop_hint=0.0, drop_both=0.0),
)
