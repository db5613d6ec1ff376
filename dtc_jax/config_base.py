"""What every configuration shares: strictness, the error, and the check that raises it."""

from __future__ import annotations

import pydantic

STRICT: pydantic.ConfigDict = {"extra": "forbid"}
"""Unknown fields in a config.json are errors."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message says which field and what to change."""


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
