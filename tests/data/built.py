"""Data sets that tests build, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtc_jax.data.build import main
from dtc_jax.data.records import Sample, decode, find_data_set, open_split


def records(folder: Path, split: str = "train") -> list[Sample]:
    data_set = find_data_set(folder)
    return [decode(record) for record in open_split(data_set, split)]


def assert_same_records(one: Path, other: Path) -> None:
    """Of two data sets; of pictures their files' bytes, before they are decoded. Shards differ between processes."""
    splits = find_data_set(one).splits
    assert splits == find_data_set(other).splits and len(splits) == 2
    for split in splits:
        for first, second in zip(*(open_split(find_data_set(folder), split) for folder in (one, other)), strict=True):
            assert first.keys() == second.keys()
            for name in first:
                np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def build(kind: str, source: Path | str, output: Path, *flags: str) -> int:
    return main([kind, "--source", str(source), "--output", str(output), "--workers", "1", "--size", "64", *flags])
