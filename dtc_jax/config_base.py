"""What every configuration shares: strictness, the error, and the check that raises it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pydantic

STRICT: pydantic.ConfigDict = {"extra": "forbid"}
"""Unknown fields in a config.json are errors."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message says which field and what to change."""


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_finite(config: Any, name: str = "") -> None:
    """Refuse numbers that are not finite, in a configuration and in those within it.

    Pairs and the like are left to the checks of their own fields: a range may be without an upper end.

    Args:
        config: A dataclass.
        name: Of this configuration in the whole, for the message: "" for the whole, "model.vae" for one in it.

    Raises:
        ConfigError: the first number that is infinite or NaN.
    """
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{name}.{field.name}".removeprefix(".")
        if dataclasses.is_dataclass(value):
            require_finite(value, path)
        elif isinstance(value, float):
            require(math.isfinite(value), f"{path} = {value} must be a finite number")
