"""Tables of names: the rule, both directions, and every way in which a file can be wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dtc_jax.weights import transforms
from dtc_jax.weights.mapping import (
    Entry,
    Layout,
    differences,
    export_tensors,
    flax_shapes,
    ignored_tensors,
    import_params,
    import_tensors,
    join_entries,
    rule_entries,
    torch_name,
    torch_shapes,
    with_transform,
)
from dtc_jax.weights.tensors import ArraySource, LazyTensor, WeightsError, open_tensors, with_prefix, write_tensors

SHAPES = {
    "conv_in/kernel": (3, 3, 2, 4),
    "conv_in/bias": (4,),
    "blocks_0/norm/scale": (4,),
    "blocks_0/q/kernel": (4, 6),
    "blocks_0/k/kernel": (4, 6),
    "blocks_0/v/kernel": (4, 6),
    "blocks_0/linear_1/kernel": (4, 5),
    "tokens/embedding": (7, 4),
}


def entries(shapes: dict[str, tuple[int, ...]]) -> list[Entry]:
    table = rule_entries(shapes, whole=("linear_1",), renames=[(r"^blocks\.", "layers.")])
    groups = [([f"layers.0.{part}.weight" for part in "qkv"], "layers.0.qkv.weight")]
    return join_entries(table, groups, lambda entry: transforms.joined(transforms.LINEAR, 3))


LAYOUT = Layout("toy network", entries, ignored=(r"head\..*",))
TORCH_SHAPES = {
    "conv_in.weight": (4, 2, 3, 3),
    "conv_in.bias": (4,),
    "layers.0.norm.weight": (4,),
    "layers.0.qkv.weight": (18, 4),
    "layers.0.linear_1.weight": (5, 4),
    "tokens.weight": (7, 4),
}


def torch_arrays(dtype: np.dtype | type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in TORCH_SHAPES.items()}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("down_blocks_0/resnets_11/conv1/kernel", "down_blocks.0.resnets.11.conv1.weight"),
        ("ff/net_0/proj/bias", "ff.net.0.proj.bias"),
        ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
        ("norm/scale", "norm.weight"),
        ("encoder/layer_3/layer_scale1/lambda1", "encoder.layer.3.layer_scale1.lambda1"),
        ("tokens/embedding", "tokens.weight"),
        ("cls_token", "cls_token"),
    ],
)
def test_names_by_rule(path: str, name: str) -> None:
    assert torch_name(path, whole=("linear_1",)) == name


def test_names_and_shapes_of_the_other_side() -> None:
    assert torch_shapes(LAYOUT, SHAPES) == TORCH_SHAPES


def test_values_by_hand() -> None:
    arrays = torch_arrays()
    params = import_params(LAYOUT, ArraySource(arrays), SHAPES)
    assert {path: array.shape for path, array in params.items()} == SHAPES and list(params) == list(SHAPES)
    assert params["conv_in/kernel"][2, 1, 1, 3] == arrays["conv_in.weight"][3, 1, 2, 1]
    assert params["blocks_0/k/kernel"][3, 2] == arrays["layers.0.qkv.weight"][6 + 2, 3]
    assert params["blocks_0/v/kernel"][0, 5] == arrays["layers.0.qkv.weight"][12 + 5, 0]
    assert params["tokens/embedding"][6, 1] == arrays["tokens.weight"][6, 1]


@pytest.mark.parametrize(
    ("dtype", "through_float32"),
    [
        (np.float32, False),
        (np.float16, False),
        (np.float16, True),
        (ml_dtypes.bfloat16, False),
        (ml_dtypes.bfloat16, True),
        (np.float64, False),
    ],
)
def test_there_and_back_is_exact(dtype: type, through_float32: bool, tmp_path: Path) -> None:
    arrays = torch_arrays(dtype)
    tensors = import_tensors(LAYOUT, ArraySource(arrays), SHAPES, np.float32 if through_float32 else None)
    write_tensors(tmp_path, "flax", tensors)
    exported = export_tensors(LAYOUT, open_tensors(tmp_path / "flax.safetensors"), dtype)
    assert [tensor.name for tensor in exported] == sorted(TORCH_SHAPES)
    for tensor in exported:
        array = tensor.read()
        assert tensor.shape == array.shape == TORCH_SHAPES[tensor.name] and array.dtype == tensor.dtype == dtype
        assert array.tobytes() == arrays[tensor.name].tobytes(), tensor.name


@pytest.mark.parametrize(
    ("transform", "flax", "torch"),
    [
        (transforms.CONV, (3, 1, 4, 5), (5, 4, 3, 1)),
        (transforms.LINEAR, (4, 5), (5, 4)),
        (transforms.LINEAR_AS_CONV, (4, 5), (5, 4, 1, 1)),
        (transforms.CONV_AS_LINEAR, (1, 1, 4, 5), (5, 4)),
        (transforms.IDENTITY, (4, 5), (4, 5)),
        (transforms.reshaped((3,), (1, 3, 1, 1)), (3,), (1, 3, 1, 1)),
        (transforms.conv_with_inputs((2, 0, 1)), (3, 3, 3, 2), (2, 3, 3, 3)),
    ],
)
def test_transforms_are_bijections(
    transform: transforms.Transform, flax: tuple[int, ...], torch: tuple[int, ...]
) -> None:
    assert transform.torch_shapes([flax]) == [torch]
    there = np.random.default_rng(0).normal(size=torch)
    (here,) = transform.to_flax([there])
    assert here.shape == flax
    np.testing.assert_array_equal(transform.to_torch([here])[0], there)


def test_input_channels_in_another_order() -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 3, 1, 1))
    (flax,) = transforms.conv_with_inputs((2, 0, 1)).to_flax([kernel])
    np.testing.assert_array_equal(flax[0, 0, 0], kernel[:, 2, 0, 0])
    np.testing.assert_array_equal(flax[0, 0, 1], kernel[:, 0, 0, 0])


def test_what_is_left_aside_completes_an_export() -> None:
    arrays = {**torch_arrays(), "head.weight": np.ones((2, 2), np.int64)}
    params = import_params(LAYOUT, ArraySource(arrays), SHAPES)
    tensors = [*export_tensors(LAYOUT, params), *ignored_tensors(LAYOUT, ArraySource(arrays))]
    assert {tensor.name for tensor in tensors} == set(arrays)
    np.testing.assert_array_equal(tensors[-1].read(), arrays["head.weight"])


# ------------------------------------------------------------------------------------------------------------ errors


def rename(arrays: dict[str, np.ndarray]) -> None:
    arrays["conv_in.wieght"] = arrays.pop("conv_in.weight")


def reshape(arrays: dict[str, np.ndarray]) -> None:
    arrays["layers.0.qkv.weight"] = arrays["layers.0.qkv.weight"].T


def quantise(arrays: dict[str, np.ndarray]) -> None:
    arrays["tokens.weight"] = np.ones((7, 4), np.int8)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            rename,
            "1 missing (unet.conv_in.weight [4, 2, 3, 3]); 1 unexpected (unet.conv_in.wieght [4, 2, 3, 3])",
        ),
        (reshape, "1 misshapen (unet.layers.0.qkv.weight is [4, 18], expected [18, 4])"),
        (quantise, "1 not floating point (unet.tokens.weight is int8)"),
        (dict.clear, "6 missing (unet.conv_in.bias [4], "),
    ],
)
def test_a_wrong_tensor_is_named(spoil: Callable[[dict], None], reason: str) -> None:
    arrays = torch_arrays()
    spoil(arrays)
    everything = ArraySource(
        {f"unet.{name}": array for name, array in arrays.items()} | {"vae": np.ones(1)}, Path("f.pt")
    )
    with pytest.raises(WeightsError) as error:
        import_tensors(LAYOUT, with_prefix(everything, "unet."), SHAPES)
    message = str(error.value)
    assert message.startswith("f.pt: not what toy network holds: ") and "\n" not in message
    if spoil is dict.clear:
        assert "6 missing" in message and ", and 3 more" in message
    else:
        assert reason in message


def test_the_shard_with_the_wrong_tensor_is_named(tmp_path: Path) -> None:
    arrays = torch_arrays()
    reshape(arrays)
    tensors = [LazyTensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]
    files = write_tensors(tmp_path, "model", tensors, max_shard_bytes=320)
    source = open_tensors(tmp_path)
    with pytest.raises(WeightsError, match=source.origin("layers.0.qkv.weight").name):
        import_tensors(LAYOUT, source, SHAPES)
    assert len(files) > 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite_is_named(value: float, dtype: type) -> None:
    arrays = torch_arrays(dtype)
    arrays["layers.0.qkv.weight"][3, 1] = value
    source = ArraySource(arrays, Path("f.pt"))
    tensors = {tensor.name: tensor for tensor in import_tensors(LAYOUT, source, SHAPES)}
    tensors["tokens/embedding"].read()
    with pytest.raises(WeightsError, match=r"f.pt: layers.0.qkv.weight: 1 of 72 values are NaN or infinite"):
        tensors["blocks_0/q/kernel"].read()
    with pytest.raises(WeightsError, match=r"parameters: tokens/embedding: 28 of 28 values are NaN"):
        params = {path: np.ones(shape, dtype) for path, shape in SHAPES.items()}
        params["tokens/embedding"][:] = value
        [tensor.read() for tensor in export_tensors(LAYOUT, params)]


def test_values_beyond_the_type_are_named() -> None:
    params = {path: np.full(shape, 1e6, np.float32) for path, shape in SHAPES.items()}
    with pytest.raises(WeightsError, match=r"conv_in/bias: 1e\+06 is beyond the range of float16"):
        [tensor.read() for tensor in export_tensors(LAYOUT, params, np.float16)]


def test_differences_of_a_good_file_are_none() -> None:
    assert str(differences(LAYOUT, ArraySource(torch_arrays()), SHAPES)) == ""


def test_a_table_that_is_wrong_is_refused() -> None:
    twice = replace(LAYOUT, entries=lambda shapes: [*entries(shapes), Entry(("conv_in/bias",), ("again",))])
    same_name = replace(LAYOUT, entries=lambda shapes: rule_entries(shapes, renames=[(r"k\.weight", "q.weight")]))
    short = replace(LAYOUT, entries=lambda shapes: entries(shapes)[1:])
    for layout in (twice, same_name, short):
        with pytest.raises(ValueError, match="does not cover every tensor once"):
            torch_shapes(layout, SHAPES)


def test_a_layout_with_another_transform() -> None:
    other = with_transform(LAYOUT, "other", "conv_in/kernel", transforms.conv_with_inputs((1, 0)))
    arrays = torch_arrays()
    ours = import_params(other, ArraySource(arrays), SHAPES)
    theirs = import_params(LAYOUT, ArraySource(arrays), SHAPES)
    np.testing.assert_array_equal(ours["conv_in/kernel"], theirs["conv_in/kernel"][:, :, ::-1])
    assert other.name == "other" and other.ignored == LAYOUT.ignored
    for path in SHAPES.keys() - {"conv_in/kernel"}:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_shapes_of_a_tree() -> None:
    assert flax_shapes({"a": {"b": np.ones((2, 3))}, "c": np.ones(4)}) == {"a/b": (2, 3), "c": (4,)}


def test_a_conversion_holds_a_tensor_or_two(tmp_path: Path) -> None:
    count, side = 12, 512
    shapes = {f"layers_{n}/kernel": (side, side) for n in range(count)}
    layout = Layout("many layers", rule_entries)
    arrays = {name: np.zeros(shape, np.float16) for name, shape in torch_shapes(layout, shapes).items()}
    write_tensors(tmp_path, "torch", [LazyTensor(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()])
    del arrays
    tracemalloc.start()
    tensors = import_tensors(layout, open_tensors(tmp_path / "torch.safetensors"), shapes, np.float32)
    write_tensors(tmp_path, "flax", tensors)
    write_tensors(tmp_path, "again", export_tensors(layout, open_tensors(tmp_path / "flax.safetensors"), np.float16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * side * side * 4, f"{peak:,} bytes for tensors of {side * side * 4:,}"
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "torch.safetensors").read_bytes()
