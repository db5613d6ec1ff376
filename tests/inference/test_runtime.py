"""Where compiled functions are kept, and that freed memory goes back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dtc_jax.inference import runtime
from dtc_jax.inference.runtime import enable_compilation_cache, release_freed_memory

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of main memory that this process has."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "DTC_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert enable_compilation_cache() == tmp_path / "user" / "dtc_jax"
    monkeypatch.setenv("DTC_JAX_CACHE", str(tmp_path / "ours"))
    assert enable_compilation_cache() == tmp_path / "ours"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert enable_compilation_cache() == tmp_path / "jax" == Path(jax.config.jax_compilation_cache_dir)


def test_what_is_worth_keeping_is_the_users_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.25")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.25)
    enable_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.25
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    enable_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5


def test_off_or_impossible_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("DTC_JAX_CACHE", "")
    assert enable_compilation_cache() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DTC_JAX_CACHE", str(tmp_path / "file" / "below"))
    assert enable_compilation_cache() is None


@pytest.mark.skipif(
    not STATUS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs Linux with the GNU C library"
)
def test_freed_pieces_are_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    pieces = [library.malloc(4000) for _ in range(20_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 4000)
    # The last one stays: the allocator then keeps what lies before it.
    for piece in pieces[:-1]:
        library.free(piece)
    kept = resident()
    release_freed_memory()
    assert kept - resident() > 60e6
    library.free(pieces[-1])


def test_without_such_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    release_freed_memory()
