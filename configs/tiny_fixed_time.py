"""The shipped model with a hint encoder that does not see the timestep, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_fixed_time",
    model=replace(TINY.model, hint=replace(TINY.model.hint, time="fixed")),
)
