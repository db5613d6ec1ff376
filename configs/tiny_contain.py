"""The shipped model with the paper's hint, its aspect kept in the largest rectangle of the mask, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_contain",
    model=replace(TINY.model, hint=replace(TINY.model.hint, fit="contain", region="largest_rectangle")),
)
