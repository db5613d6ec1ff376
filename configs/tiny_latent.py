"""The shipped model with its hint stitched into the scene and encoded, no adapter, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_latent",
    model=replace(TINY.model, hint=replace(TINY.model.hint, kind="latent")),
)
