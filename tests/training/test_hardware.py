"""The table of accelerators."""

from __future__ import annotations

from dtc_jax.training.hardware import ACCELERATORS, GIB, accelerator, accelerator_named


def test_names_that_jax_reports() -> None:
    v5e = accelerator("TPU v5 lite")
    assert v5e is not None and v5e.name == "v5e"
    assert v5e.peak_flops == 197e12
    # "TPU v5" is v5p, not v5e.
    v5p = accelerator("TPU v5")
    assert v5p is not None and v5p.peak_flops == 459e12
    a100 = accelerator("NVIDIA A100-SXM4-40GB")
    assert a100 is not None and a100.peak_flops == 312e12 and 37 * GIB < a100.memory_bytes < 40 * GIB


def test_what_is_not_in_the_table() -> None:
    assert accelerator("cpu") is None
    assert accelerator_named("abacus") is None


def test_no_name_twice() -> None:
    names = [entry.name for entry in ACCELERATORS]
    kinds = [kind for entry in ACCELERATORS for kind in entry.device_kinds]
    assert len(set(names)) == len(names)
    assert len(set(kinds)) == len(kinds)
    assert all(accelerator_named(entry.name) is entry for entry in ACCELERATORS)
    assert all(accelerator(kind) in ACCELERATORS for kind in kinds)
