"""Dinov2Model against transformers', every tensor random, float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dtc_jax import presets
from dtc_jax.config import DINOv2Config
from dtc_jax.models.dinov2 import Dinov2Model
from tests.parity.naming import fill_randomly, relative_l2, torch_to_flax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5

_RENAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}


def oracle(config: DINOv2Config) -> torch.nn.Module:
    return transformers.Dinov2Model(
        transformers.Dinov2Config(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            use_swiglu_ffn=config.use_swiglu_ffn,
            layer_norm_eps=config.layer_norm_eps,
        )
    ).eval()


def published_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The names in published files from those of the module in memory, which newer releases of transformers changed."""
    result = {}
    for name, tensor in state_dict.items():
        if ".mlp.up_proj." in name:
            continue
        if ".mlp.gate_proj." in name:
            tensor = torch.cat([tensor, state_dict[name.replace("gate_proj", "up_proj")]])
            name = name.replace("gate_proj", "weights_in")
        result[re.sub("|".join(_RENAMES), lambda match: _RENAMES[match.group()], name)] = tensor
    return result


@pytest.mark.parametrize("use_swiglu_ffn", [False, True], ids=["gelu", "swiglu"])
def test_tokens_match_transformers(use_swiglu_ffn: bool, tmp_path: Path) -> None:
    config = DINOv2Config(
        image_size=20,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        use_swiglu_ffn=use_swiglu_ffn,
    )
    reference = oracle(config)
    fill_randomly(reference, seed=3)
    reference.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(published_names(reference.state_dict()))

    model = Dinov2Model(config)
    pixels = np.random.default_rng(4).normal(size=(2, 20, 20, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    params = {"params": torch_to_flax(saved, shapes)}
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    actual = jax.jit(model.apply)(params, pixels)
    assert expected.shape == (2, 26, 24) == (2, config.num_tokens, config.hidden_size)
    assert expected.std() > 0.1
    assert relative_l2(actual[:, 0], expected[:, 0]) <= TOLERANCE, "CLS"
    assert relative_l2(actual[:, 1:], expected[:, 1:]) <= TOLERANCE, "patches"


def test_giant_has_the_published_names_shapes_and_count() -> None:
    # 518 pixels is what the published position table is for: 37 * 37 + 1 rows.
    config = DINOv2Config(image_size=518)
    with torch.device("meta"):
        published = published_names(oracle(config).state_dict())
    shapes = jax.eval_shape(
        Dinov2Model(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    )["params"]
    # Arrays without memory: one zero, strided to the shape.
    torch_to_flax({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in published.items()}, shapes)
    leaves = jax.tree.leaves(shapes)
    count = sum(leaf.size for leaf in leaves)
    assert (count, len(leaves)) == (1_136_480_768, 727), f"{count:,} parameters in {len(leaves)} tensors"
    assert presets.sd15().reference_encoder == DINOv2Config(image_size=224)
