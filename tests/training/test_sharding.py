"""The one rule, on eight virtual devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dtc_jax.config import ConfigError
from dtc_jax.training.sharding import batch_sharding, make_mesh, partition_spec, replicated, tree_sharding

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 3, 8, 16), (None, None, None, "fsdp")),
        ((3, 3, 16, 8), (None, None, "fsdp", None)),
        ((8, 8), (None, "fsdp")),
        # The largest axis does not divide: the next one that does.
        ((4, 17), ("fsdp", None)),
        ((13, 17), ()),
        ((8,), ()),
        ((), ()),
    ],
    ids=str,
)
def test_largest_divisible_axis(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> None:
    assert partition_spec(shape, 4, min_size=64) == PartitionSpec(*axes)


def test_what_stays_whole() -> None:
    assert partition_spec((8, 8), 4, min_size=65) == PartitionSpec()
    assert partition_spec((8, 8), 1, min_size=1) == PartitionSpec()


def test_mesh() -> None:
    assert dict(make_mesh(1).shape) == {"data": jax.device_count(), "fsdp": 1}
    assert dict(make_mesh(4, jax.devices()[:8]).shape) == {"data": 2, "fsdp": 4}
    assert make_mesh(1, jax.devices()[2:3]).devices.item() == jax.devices()[2]


@pytest.mark.parametrize("fsdp", [3, -1, 16])
def test_mesh_that_does_not_divide(fsdp: int) -> None:
    with pytest.raises(ConfigError, match=rf"training.fsdp_devices = {fsdp} must divide the number of devices, 8"):
        make_mesh(fsdp, jax.devices()[:8])


def test_arrays_are_split_as_the_rule_says() -> None:
    mesh = make_mesh(4, jax.devices()[:8])
    tree = {"kernel": np.arange(12 * 16.0).reshape(12, 16), "bias": np.arange(16.0)}
    placed = jax.device_put(tree, tree_sharding(mesh, tree, min_size=32))
    assert {shard.data.shape for shard in placed["kernel"].addressable_shards} == {(12, 4)}
    assert {shard.data.shape for shard in placed["bias"].addressable_shards} == {(16,)}
    # Two copies of four parts, together the array.
    parts = {tuple(range(*shard.index[1].indices(16))): shard.data for shard in placed["kernel"].addressable_shards}
    assert len(parts) == 4
    for columns, part in parts.items():
        np.testing.assert_array_equal(part, tree["kernel"][:, list(columns)])


def test_batch_is_split_over_both_axes() -> None:
    mesh = make_mesh(2, jax.devices()[:8])
    rows = np.arange(16.0).reshape(16, 1)
    placed = jax.device_put(rows, batch_sharding(mesh))
    by_device = {shard.device: np.asarray(shard.data)[:, 0] for shard in placed.addressable_shards}
    for position, device in enumerate(mesh.devices.flat):
        np.testing.assert_array_equal(by_device[device], [2 * position, 2 * position + 1])
    assert {shard.data.shape for shard in jax.device_put(rows, replicated(mesh)).addressable_shards} == {(16, 1)}
