"""Dropout of conditions: probabilities, and that the three cases exclude one another."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.config import ConfigError, LossConfig
from dtc_jax.training.conditions import condition_dropout

# Midpoints of a thousand equal parts of [0, 1): means are exact shares, without a random number.
U = jnp.asarray((np.arange(1000) + 0.5) / 1000, jnp.float32)


def _shares(config: LossConfig) -> dict[str, float]:
    tokens, hint = (np.asarray(keep) for keep in condition_dropout(U, config))
    assert set(np.unique(tokens)) <= {0.0, 1.0} and set(np.unique(hint)) <= {0.0, 1.0}
    return {
        "tokens": float(np.mean((tokens == 0) & (hint == 1))),
        "hint": float(np.mean((tokens == 1) & (hint == 0))),
        "both": float(np.mean((tokens == 0) & (hint == 0))),
        "none": float(np.mean((tokens == 1) & (hint == 1))),
    }


def test_probabilities() -> None:
    shares = _shares(LossConfig(drop_tokens=0.2, drop_hint=0.1, drop_both=0.3))
    assert shares == pytest.approx({"tokens": 0.2, "hint": 0.1, "both": 0.3, "none": 0.4}, abs=1e-9)


@pytest.mark.parametrize("name", ["tokens", "hint", "both"])
def test_one_alone(name: str) -> None:
    chances = {"drop_tokens": 0.0, "drop_hint": 0.0, "drop_both": 0.0, f"drop_{name}": 0.25}
    expected = {"tokens": 0.0, "hint": 0.0, "both": 0.0, name: 0.25, "none": 0.75}
    assert _shares(LossConfig(**chances)) == pytest.approx(expected, abs=1e-9)


def test_nothing_and_everything() -> None:
    assert _shares(LossConfig(drop_tokens=0.0))["none"] == 1
    assert _shares(LossConfig(drop_tokens=0.5, drop_hint=0.25, drop_both=0.25))["none"] == 0
    # u = 0 occurs; u = 1 does not.
    tokens, hint = condition_dropout(jnp.zeros(1), LossConfig(drop_tokens=0.0))
    assert (tokens.item(), hint.item()) == (1, 1)


def test_more_than_all() -> None:
    with pytest.raises(ConfigError, match="more than 1"):
        LossConfig(drop_tokens=0.6, drop_hint=0.3, drop_both=0.2)
