"""The shipped model with its hint's edges by Canny in place of the pixels, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_canny",
    model=replace(TINY.model, hint=replace(TINY.model.hint, kind="canny")),
)
