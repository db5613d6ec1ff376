"""Counting what is compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest


@contextmanager
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The programs that are compiled meanwhile, single operations among them."""
    found: list[str] = []
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        yield found
    found += [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling ")]
