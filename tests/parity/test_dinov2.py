"""Dinov2Model against transformers' and Facebook's, every tensor random, float32; the files of both there and back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import DINOv2Config
from dtc_jax.models.dinov2 import Dinov2Model, interpolate_positions
from dtc_jax.weights import dinov2
from dtc_jax.weights.detect import detect
from dtc_jax.weights.mapping import export_tensors, import_params, torch_shapes
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import ArraySource, open_tensors, write_tensors
from tests.parity.conversion import assert_exact_round_trip
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
facebook = pytest.importorskip("tests.parity.facebook")

TOLERANCE = 1e-5
# Heads of 64 channels are what the published networks have and files do not show.
GELU = DINOv2Config(
    image_size=20,
    patch_size=4,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    use_swiglu_ffn=False,
)
SWIGLU = dataclasses.replace(GELU, hidden_size=64, num_attention_heads=1, mlp_ratio=4, use_swiglu_ffn=True)
BOTH = pytest.mark.parametrize("config", [GELU, SWIGLU], ids=["gelu", "swiglu"])

# facebookresearch/dinov2, dinov2/models/vision_transformer.py: width, depth, heads; tensors and parameters of its
# modules, counted with that code.
PUBLISHED = {
    "small": (384, 12, 6, 175, 22_056_576),
    "base": (768, 12, 12, 175, 86_580_480),
    "large": (1024, 24, 16, 343, 304_368_640),
    "giant": (1536, 40, 24, 567, 1_136_480_768),
}


def oracle(config: DINOv2Config) -> Any:
    return transformers.Dinov2Model(transformers.Dinov2Config(**dinov2.to_transformers_config(config))).eval()


def run(config: DINOv2Config, params: dict[str, np.ndarray], pixels: np.ndarray) -> jax.Array:
    return jax.jit(Dinov2Model(config).apply)({"params": unflatten_params(params)}, pixels)


def images(config: DINOv2Config) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)


def nchw(pixels: np.ndarray) -> Any:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@BOTH
def test_transformers_tokens_and_files(config: DINOv2Config, tmp_path: Path) -> None:
    reference = oracle(config)
    fill_randomly(reference, seed=3)
    reference.save_pretrained(tmp_path / "theirs")
    found = detect(open_tensors(tmp_path / "theirs"))
    assert (found.network, found.layout, found.config) == ("dinov2", dinov2.TRANSFORMERS, config)
    params = import_params(found.layout, found.source, found.shapes)

    pixels = images(config)
    with torch.no_grad():
        expected = reference(nchw(pixels)).last_hidden_state.numpy()
    actual = run(config, params, pixels)
    assert expected.shape == (2, 26, config.hidden_size) == (2, config.num_tokens, config.hidden_size)
    assert expected.std() > 0.1
    assert relative_l2(actual[:, 0], expected[:, 0]) <= TOLERANCE, "CLS"
    assert relative_l2(actual[:, 1:], expected[:, 1:]) <= TOLERANCE, "patches"

    (tmp_path / "ours").mkdir()
    reference.config.save_pretrained(tmp_path / "ours")
    write_tensors(tmp_path / "ours", "model", export_tensors(dinov2.TRANSFORMERS, params), max_shard_bytes=200_000)
    again = transformers.Dinov2Model.from_pretrained(tmp_path / "ours").state_dict()
    state = reference.state_dict()
    assert set(again) == set(state) and all(torch.equal(again[name], state[name]) for name in state)
    stored = {name: found.source.read(name) for name in found.source.keys()}  # noqa: SIM118
    assert_exact_round_trip(stored, dinov2.TRANSFORMERS, found.shapes)


@BOTH
def test_facebook_tokens_and_files_with_positions_of_another_size(config: DINOv2Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, position_image_size=48)
    reference = facebook.VisionTransformer(config).eval()
    fill_randomly(reference, seed=5)
    torch.save(reference.state_dict(), tmp_path / "dinov2.pth")
    found = detect(open_tensors(tmp_path / "dinov2.pth"))
    assert (found.network, found.layout) == ("dinov2", dinov2.FACEBOOK)
    assert found.config == dataclasses.replace(config, image_size=48, position_image_size=None)
    params = import_params(found.layout, found.source, found.shapes)

    pixels = images(config)
    with torch.no_grad():
        expected = reference(nchw(pixels)).numpy()
    assert relative_l2(run(config, params, pixels), expected) <= TOLERANCE
    for dtype in (torch.float32, torch.bfloat16):
        # PyTorch's bfloat16 as bytes: numpy has no name for it.
        state = {n: t.to(dtype) for n, t in reference.state_dict().items()}
        torch.save(state, tmp_path / "typed.pth")
        source = open_tensors(tmp_path / "typed.pth")
        assert_exact_round_trip({n: source.read(n) for n in state}, dinov2.FACEBOOK, found.shapes)

    # For transformers, the table of the size that is used; its own interpolation is another.
    folded, at_size = dinov2.at_image_size(params, config)
    assert at_size.num_positions == config.num_tokens and at_size.position_image_size is None
    np.testing.assert_allclose(run(at_size, folded, pixels), run(config, params, pixels), rtol=1e-5, atol=1e-6)
    module = oracle(at_size)
    state = {t.name: torch.from_numpy(t.read()) for t in export_tensors(dinov2.TRANSFORMERS, folded)}
    write_tensors(tmp_path, "model", export_tensors(dinov2.TRANSFORMERS, folded))
    module.config.save_pretrained(tmp_path)
    module = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    assert len(state) == len(found.shapes)
    with torch.no_grad():
        assert relative_l2(module(nchw(pixels)).last_hidden_state.numpy(), expected) <= TOLERANCE


def test_positions_are_interpolated_as_facebook_does() -> None:
    config = DINOv2Config(
        image_size=224, position_image_size=518, hidden_size=8, num_hidden_layers=0, num_attention_heads=1
    )
    reference = facebook.VisionTransformer(config)
    fill_randomly(reference)
    table = reference.pos_embed.detach()
    ours = interpolate_positions(table.numpy(), config)
    assert ours.shape == (1, 257, 8)
    assert relative_l2(ours, reference.positions(16).detach().numpy()) <= 1e-6
    grid = table[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    sized = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    assert relative_l2(ours[:, 1:], sized.numpy()) > 0.03, "transformers' way must be another"
    same = dataclasses.replace(config, image_size=518)
    np.testing.assert_array_equal(interpolate_positions(table.numpy(), same), table.numpy())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_shapes_and_counts(name: str) -> None:
    width, depth, heads, tensors, parameters = PUBLISHED[name]
    config = DINOv2Config(
        image_size=224,
        position_image_size=518,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        use_swiglu_ffn=name == "giant",
    )
    shapes = dinov2.shapes(config)
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in facebook.VisionTransformer(config).state_dict().items()}
        hugging_face = published_shapes(oracle(config).state_dict())
    assert torch_shapes(dinov2.FACEBOOK, shapes) == theirs
    assert torch_shapes(dinov2.TRANSFORMERS, shapes) == hugging_face
    count = sum(int(np.prod(shape)) for shape in theirs.values())
    assert (len(theirs), count) == (tensors, parameters), f"{count:,} parameters in {len(theirs)} tensors"
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    # One zero per tensor, strided to its shape: no memory.
    for expected, layout in ((theirs, dinov2.FACEBOOK), (hugging_face, dinov2.TRANSFORMERS)):
        source = ArraySource({n: np.broadcast_to(np.float32(0), shape) for n, shape in expected.items()})
        found = detect(source)
        assert (found.layout, found.config, found.shapes) == (layout, config, shapes)
    if name == "giant":
        assert presets.sd15().reference_encoder == config


_RENAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}


def published_shapes(state_dict: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in published files from those in memory, which newer releases of transformers changed.

    That `save_pretrained` writes these names is what the test of its files shows.
    """
    result = {}
    for name, tensor in state_dict.items():
        if ".mlp.up_proj." in name:
            continue
        shape = tuple(tensor.shape)
        if ".mlp.gate_proj." in name:
            shape, name = (2 * shape[0], *shape[1:]), name.replace("gate_proj", "weights_in")
        result[re.sub("|".join(_RENAMES), lambda match: _RENAMES[match.group()], name)] = shape
    return result
