"""The one rule, on eight virtual devices."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec

from dtc_jax.config import ConfigError, TrainingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.resnet import nearest_upsample
from dtc_jax.training.command import read_config
from dtc_jax.training.initial import initial_params
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.params import split_trainable
from dtc_jax.training.placement import held_to_batch, place
from dtc_jax.training.sharding import (
    batch_sharding,
    bytes_per_device,
    check_batch,
    make_mesh,
    overridden_spec,
    partition_spec,
    readable_bytes,
    replicated,
    tree_sharding,
)
from dtc_jax.training.step import init_state
from dtc_jax.weights.model_folder import flatten_params

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

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


# --------------------------------------------------------------------------------------------------- several slices


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh asks for."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "test"


def nodes(count: int, size: int) -> list[Device]:
    return [Device(node * size + index, node, node) for node in range(count) for index in range(size)]


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_fsdp_stays_within_a_slice(fsdp: int) -> None:
    # Not in the order of the slices.
    devices = nodes(4, 4)[::-1]
    mesh = make_mesh(fsdp, devices)  # type: ignore[arg-type]
    assert dict(mesh.shape) == {"data": 16 // fsdp, "fsdp": fsdp}
    for row in mesh.devices:
        assert len({device.slice_index for device in row}) == 1
    expected = mesh_utils.create_hybrid_device_mesh((4 // fsdp, fsdp), (4, 1), nodes(4, 4))
    assert (mesh.devices == expected).all()


def test_fsdp_over_all_of_a_slice() -> None:
    assert dict(make_mesh(0, nodes(2, 8)).shape) == {"data": 2, "fsdp": 8}  # type: ignore[arg-type]
    assert dict(make_mesh(0, jax.devices()[:4]).shape) == {"data": 1, "fsdp": 4}


def test_fsdp_over_several_slices(caplog: pytest.LogCaptureFixture) -> None:
    mesh = make_mesh(8, nodes(4, 4))  # type: ignore[arg-type]
    assert "spans 2 slices of 4 devices" in caplog.text
    assert [{device.slice_index for device in row} for row in mesh.devices] == [{0, 1}, {2, 3}]
    # Neighbours along the axis are neighbours in a slice.
    assert [device.slice_index for device in mesh.devices[0]] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_slices_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="fsdp_devices = 4 must divide the 6 devices of a slice"):
        make_mesh(4, nodes(2, 6))  # type: ignore[arg-type]
    uneven = [*nodes(1, 4), *nodes(2, 2)[2:]]
    with pytest.raises(ConfigError, match="different sizes, 2, 4 devices"):
        make_mesh(2, uneven)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"training\.slices = 3 must divide the number of devices, 8"):
        make_mesh(1, jax.devices()[:8], slices=3)


def test_slices_of_ones_own() -> None:
    devices = nodes(2, 4)
    assert dict(make_mesh(0, devices, slices=4).shape) == {"data": 4, "fsdp": 2}  # type: ignore[arg-type]
    assert dict(make_mesh(0, devices, slices=1).shape) == {"data": 1, "fsdp": 8}  # type: ignore[arg-type]


def test_several_slices_that_are_taken_as_one_have_no_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    # What JAX does for TPUs of more than one slice.
    def refuse(shape: tuple[int, int], devices: list[Any], **options: Any) -> Any:
        assert len({device.slice_index for device in devices}) == 1
        return np.asarray(devices).reshape(shape)

    monkeypatch.setattr("dtc_jax.training.sharding.mesh_utils.create_device_mesh", refuse)
    assert dict(make_mesh(0, nodes(2, 4), slices=1).shape) == {"data": 1, "fsdp": 8}  # type: ignore[arg-type]
    assert dict(make_mesh(4, nodes(2, 4)).shape) == {"data": 2, "fsdp": 4}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "accumulation", "message"),
    [
        (12, 1, "training.batch_size = 12 must be a multiple of the number of devices, 8: for instance 16"),
        (24, 2, "a multiple of the number of devices, 8 times training.accumulation_steps, 2: for instance 32"),
        (2, 1, "for instance 8"),
    ],
)
def test_batch_that_the_devices_cannot_share(batch: int, accumulation: int, message: str) -> None:
    mesh = make_mesh(2, jax.devices()[:8])
    with pytest.raises(ConfigError, match=message):
        check_batch(TrainingConfig(batch_size=batch, accumulation_steps=accumulation), mesh)
    check_batch(TrainingConfig(batch_size=48, accumulation_steps=2), mesh)


# --------------------------------------------------------------------------------------- overrides, state and memory


def test_overrides_decide_for_parameters_averages_and_moments() -> None:
    mesh = make_mesh(4, jax.devices()[:8])
    shapes = {name: jax.ShapeDtypeStruct((8, 16), np.float32) for name in ("unet/a/kernel", "unet/b/kernel", "vgg/a")}
    state = jax.eval_shape(lambda leaves: init_state(leaves, optax.adamw(1e-3)), shapes)
    overrides = (("^unet/a/", "axis=0"), ("/a", "axis=-1"), ("^unet", "whole"))
    sharding = tree_sharding(mesh, state, 64, overrides)
    expected = {
        "unet/a/kernel": PartitionSpec("fsdp", None),
        "unet/b/kernel": PartitionSpec(),
        "vgg/a": PartitionSpec(None, "fsdp"),
    }
    moments = sharding.opt_state[0]
    for tree in (sharding.params, sharding.ema, moments.mu, moments.nu):
        assert {path: leaf.spec for path, leaf in tree.items()} == expected
    assert sharding.step.spec == moments.count.spec == PartitionSpec()
    # Nested or flat, the path is the same.
    nested = tree_sharding(mesh, {"unet": {"a": {"kernel": shapes["vgg/a"]}}}, 64, overrides)
    assert nested["unet"]["a"]["kernel"].spec == PartitionSpec("fsdp", None)


def test_overrides_by_hand() -> None:
    assert overridden_spec("a", (8, 16), 4, "largest") == PartitionSpec(None, "fsdp")
    assert overridden_spec("a", (8, 16), 4, "axis=-2") == PartitionSpec("fsdp", None)
    assert overridden_spec("a", (8, 16), 1, "axis=7") == PartitionSpec()
    for rule, shape in (("axis=2", (8, 16)), ("axis=0", (6, 16)), ("axis=-3", (8, 16))):
        with pytest.raises(ConfigError, match=f"sharding_overrides: {rule} of a/b .* over 4 devices"):
            overridden_spec("a/b", shape, 4, rule)


@pytest.mark.parametrize("override", [("(", "whole"), ("a", "axis"), ("a", "axis=x"), ("a", "replicate")])
def test_overrides_are_checked_with_the_configuration(override: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"training\.sharding_overrides"):
        TrainingConfig(sharding_overrides=(override,))


def test_an_eighth_per_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, average, optimizer and frozen networks of the shipped model, by shapes alone."""
    config = read_config(CONFIGS / "tiny.py")[0]
    trainable, frozen = split_trainable(
        flatten_params(DiffuseToChoose(config.model).shapes()), config.training.trainable
    )
    state = jax.eval_shape(
        lambda leaves: init_state(leaves, make_optimizer(config.optimizer, config.training.steps)), trainable
    )
    held = {"parameters": state.params, "average": state.ema, "optimizer": state.opt_state, "frozen": frozen}
    for name, tree in held.items():
        sizes = [
            bytes_per_device(tree, tree_sharding(make_mesh(fsdp, jax.devices()[:8]), tree, min_size=1024))
            for fsdp in (1, 8)
        ]
        assert sizes[0] == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        assert 1 / 8 <= sizes[1] / sizes[0] < 1 / 8 + 0.02, name
        with capsys.disabled():
            print(f"\n{name}: {readable_bytes(sizes[0])}, with fsdp=8 {readable_bytes(sizes[1])} per device", end="")


def test_bytes_of_arrays() -> None:
    mesh = make_mesh(4, jax.devices()[:8])
    tree = {"kernel": np.zeros((12, 16), np.float32), "bias": np.zeros(16, np.float16), "step": np.int32(0)}
    placed = jax.device_put(tree, tree_sharding(mesh, tree, min_size=32))
    assert bytes_per_device(placed) == 12 * 4 * 4 + 16 * 2 + 4
    assert [readable_bytes(count) for count in (7, 1234, 5_600_000, 12_345_678_900)] == [
        "7 B",
        "1.23 kB",
        "5.6 MB",
        "12.3 GB",
    ]


# ------------------------------------------------------------------------------------------------- what XLA does of it


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_no_activation_is_gathered(fsdp: int) -> None:
    """What the devices send each other in a train step is as small as the parameters, whatever the pictures' size."""
    config = read_config(CONFIGS / "test.py")[0]
    training = dataclasses.replace(config.training, fsdp_min_size=64)
    # Of one level: it compiles in half the time.
    unet = dataclasses.replace(config.model.unet, block_out_channels=(8,), attention_levels=(True,))
    model = dataclasses.replace(config.model, unet=unet)
    config = dataclasses.replace(config, training=training, model=model)
    mesh = make_mesh(fsdp, jax.devices()[:8])
    # Two samples per device; half of them are decoded for the perceptual loss.
    batch = 16
    params = flatten_params(initial_params(config, jax.random.key(0)))
    trainable, frozen = split_trainable(params, config.training.trainable)
    kernels = {tuple(leaf.shape) for leaf in params.values()}
    step, state, frozen = place(config, mesh, trainable, frozen)
    assert trainable == {}
    side, reference = config.model.image_size, config.model.reference_encoder.image_size
    images = {"scene": (side, side, 3), "hint": (side, side, 3), "reference": (reference, reference, 3)}
    shapes = {name: jax.ShapeDtypeStruct((batch, *shape), np.uint8) for name, shape in images.items()}
    shapes["mask"] = jax.ShapeDtypeStruct((batch, side, side, 1), np.uint8)
    shapes["index"] = jax.ShapeDtypeStruct((batch,), np.uint32)
    # What is between the devices is decided before the passes over machine code, which take the longest.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    text = step.lower(state, frozen, shapes, jax.random.key(1)).compile(quickly).as_text()
    gathered, reduced = _results(text, "all-gather"), _results(text, "all-reduce") + _results(text, "reduce-scatter")
    # Of the batch, only the latents of the chosen half go everywhere, on the way back to where they came from.
    latents = (
        batch // 2,
        side // config.model.vae.factor,
        side // config.model.vae.factor,
        config.model.vae.latent_channels,
    )
    pictures = [shape for shape in gathered if len(shape) == 4 and shape not in kernels and shape != latents]
    assert pictures == []
    gradients = sum(math.prod(shape) for shape in reduced)
    total = sum(math.prod(shape) for shape in kernels)
    assert gradients > total
    # A convolution over pictures works on a device's own two, or on one of the half that is decoded.
    sizes = {int(match[1]) for match in re.finditer(rf"f32\[(\d+),{side},{side},\d+\]\S* convolution\(", text)}
    assert sizes and max(sizes) <= 2, sizes


class _Enlarged(nn.Module):
    """Pictures twice as large, between two convolutions."""

    upsample: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(8, (3, 3))(self.upsample(nn.Conv(8, (3, 3))(x)))


def _broadcast_upsample(x: jax.Array) -> jax.Array:
    """The same as `nearest_upsample`, but a reshape after which XLA does not know that the batch is split."""
    batch, height, width, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


@pytest.mark.parametrize(
    ("upsample", "held", "gathers"),
    [(nearest_upsample, False, False), (_broadcast_upsample, False, True), (_broadcast_upsample, True, False)],
)
def test_the_batch_stays_split(upsample: Callable, held: bool, gathers: bool) -> None:
    """Where the next kernel is split, too: by how pixels are repeated, and by holding what modules return. In a train
    step either would do, so that each is tried without the other; the case with neither shows that it matters."""
    mesh = make_mesh(8, jax.devices()[:8])
    model, pictures = _Enlarged(upsample), jax.ShapeDtypeStruct((16, 4, 4, 8), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), pictures)
    apply = held_to_batch(model.apply, mesh) if held else model.apply
    split = jax.jit(apply, in_shardings=(tree_sharding(mesh, params, 64), batch_sharding(mesh)))
    gathered = _results(split.lower(params, pictures).compile().as_text(), "all-gather")
    assert (3, 3, 8, 8) in gathered, "no kernel is split"
    assert any(shape[0] == 16 for shape in gathered) is gathers, gathered


def _results(text: str, operation: str) -> list[tuple[int, ...]]:
    """Shapes of what the collectives of a kind return."""
    found = []
    for line in text.splitlines():
        match = re.search(rf" {operation}(?:-start)?\(", line)
        if match and " = " in line:
            left = line[: match.start()].split(" = ", 1)[1]
            found += [tuple(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w+\[([\d,]*)\]", left)]
    return found
