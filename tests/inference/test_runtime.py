"""Where compiled functions are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dtc_jax.inference.runtime import enable_compilation_cache


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "DTC_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert enable_compilation_cache() == tmp_path / "user" / "dtc_jax"
    monkeypatch.setenv("DTC_JAX_CACHE", str(tmp_path / "ours"))
    assert enable_compilation_cache() == tmp_path / "ours"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert enable_compilation_cache() == tmp_path / "jax" == Path(jax.config.jax_compilation_cache_dir)


def test_off_or_impossible_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("DTC_JAX_CACHE", "")
    assert enable_compilation_cache() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DTC_JAX_CACHE", str(tmp_path / "file" / "below"))
    assert enable_compilation_cache() is None
