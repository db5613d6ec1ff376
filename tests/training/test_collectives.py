"""Collectives read from compiled programs: small ones whose exchanges are known, and text as TPUs print it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dtc_jax.training.collectives import Exchange, collectives, type_bytes

ROWS = PartitionSpec("x")
WHOLE = PartitionSpec()


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


def exchanged(
    mesh: Mesh, function: Callable, inputs: tuple[PartitionSpec, ...], output: PartitionSpec, *shapes: tuple[int, ...]
) -> dict[str, Exchange]:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = (
        jax.jit(
            function,
            in_shardings=tuple(NamedSharding(mesh, spec) for spec in inputs),
            out_shardings=NamedSharding(mesh, output),
        )
        .lower(*arguments)
        .compile()
    )
    found, unknown = collectives(compiled.as_text())
    assert unknown == 0
    return found


def test_gathering_and_reducing(mesh: Mesh) -> None:
    assert exchanged(mesh, lambda x: x + 1, (ROWS,), WHOLE, (64, 8)) == {"all-gather": Exchange(1, 64 * 8 * 4)}
    # The contracted axis is split: each device has a part of every sum.
    found = exchanged(mesh, jnp.matmul, (PartitionSpec(None, "x"), ROWS), WHOLE, (8, 64), (64, 16))
    assert found == {"all-reduce": Exchange(1, 8 * 16 * 4)}
    assert exchanged(mesh, lambda x: x + 1, (ROWS,), ROWS, (64, 8)) == {}


@pytest.mark.parametrize(
    ("kind", "operation", "local_bytes"),
    [
        ("reduce-scatter", partial(jax.lax.psum_scatter, axis_name="x", tiled=True), 16 * 4 * 4),
        ("all-to-all", partial(jax.lax.all_to_all, axis_name="x", split_axis=1, concat_axis=0, tiled=True), 16 * 4 * 4),
        ("collective-permute", partial(jax.lax.ppermute, axis_name="x", perm=[(0, 1), (1, 2)]), 16 * 4 * 4),
    ],
)
def test_what_a_device_takes_in(mesh: Mesh, kind: str, operation: Callable, local_bytes: int) -> None:
    mapped = jax.shard_map(operation, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
    assert exchanged(mesh, mapped, (ROWS,), ROWS, (64, 4)) == {kind: Exchange(1, local_bytes)}


def test_loops_count_as_often_as_they_run(mesh: Mesh) -> None:
    def loop(x: jax.Array) -> jax.Array:
        def turn(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.ppermute(jnp.sin(carry), "x", [(0, 1), (1, 2), (2, 3), (3, 0)]), None

        return jax.lax.scan(turn, x, length=7)[0]

    mapped = jax.shard_map(loop, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
    assert exchanged(mesh, mapped, (ROWS,), ROWS, (64, 4)) == {"collective-permute": Exchange(7, 7 * 16 * 4 * 4)}


TPU = """\
HloModule jit_step, is_scheduled=true

%piece.1 (param_0: bf16[4,16]) -> bf16[16,16] {
  %param_0 = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0), channel_id=5, dimensions={0}, \
frontend_attributes={chain_id="2"}
}

%piece.2 (param_0.1: bf16[4,16]) -> bf16[16,16] {
  %param_0.1 = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.1), channel_id=5, dimensions={0}, \
frontend_attributes={chain_id="2"}
}

%condition (state: (f32[8], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(3)
  %state = (f32[8]{0}, u32[]) parameter(0)
  %counter = u32[] get-tuple-element(%state), index=1
  ROOT %compare = pred[]{:T(512)} compare(%counter, BOUND), direction=LT
}

%body (state.1: (f32[8], u32[])) -> (f32[8], u32[]) {
  %state.1 = (f32[8]{0}, u32[]) parameter(0)
  %value = f32[8]{0:T(128)} get-tuple-element(%state.1), index=0
  %counter.1 = u32[] get-tuple-element(%state.1), index=1
  %permute = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%value), channel_id=9
  %done = f32[8]{0} collective-permute-done(%permute)
  ROOT %tuple = (f32[8]{0}, u32[]) tuple(%done, %counter.1)
}

ENTRY %main (a: bf16[4,16], b: f32[8], c: f32[2,8]) -> f32[8] {
  %a = bf16[4,16]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = f32[2,8]{1,0} parameter(2)
  %first = bf16[16,16]{1,0} fusion(%a), kind=kCustom, calls=%piece.1
  %second = bf16[16,16]{1,0} fusion(%a), kind=kCustom, calls=%piece.2
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%c), channel_id=6, dimensions={0}
  %end = f32[8,8]{1,0} all-gather-done(%start)
  %both = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[2,8]{1,0}) all-reduce(%b, %c), channel_id=7, to_apply=%add
  %zero = u32[] constant(0)
  %input = (f32[8]{0}, u32[]) tuple(%b, %zero)
  %loop = (f32[8]{0}, u32[]) while(%input), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%loop), index=0
}
"""


def test_text_of_a_tpu() -> None:
    found, unknown = collectives(TPU.replace("BOUND", "%bound"))
    assert found == {
        # One in two pieces, and one whose start's type holds operand and result.
        "all-gather": Exchange(2, 16 * 16 * 2 + 8 * 8 * 4),
        "all-reduce": Exchange(1, (8 + 16) * 4),
        "collective-permute": Exchange(3, 3 * 8 * 4),
    }
    assert unknown == 0


def test_loop_of_unknown_length_counts_once_and_is_told() -> None:
    found, unknown = collectives(TPU.replace("BOUND", "%counter"))
    assert found["collective-permute"] == Exchange(1, 8 * 4)
    assert unknown == 1


def test_types() -> None:
    assert type_bytes("f32[8,128]{1,0:T(8,128)}") == 4096
    assert type_bytes("(bf16[3]{0}, pred[5]{0}, /*index=2*/s32[])") == 6 + 5 + 4
    assert type_bytes("f8e4m3fn[7]") == 7
    assert type_bytes("token[]") == 0


def test_not_a_program() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("nothing\n")
