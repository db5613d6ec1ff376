"""The U-Net's files against diffusers: written and read by it, converted by it (LDM), and run (Paint by Example)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import UNetConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import controlnet, unet
from dtc_jax.weights.detect import detect, detect_networks
from dtc_jax.weights.mapping import (
    differences,
    export_tensors,
    flax_shapes,
    ignored_tensors,
    import_params,
    torch_shapes,
)
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import ArraySource, LazyTensor, WeightsError, open_tensors, with_prefix, write_tensors
from dtc_jax.weights.unet_config import from_diffusers_config, to_diffusers_config
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

SMALL = UNetConfig(
    in_channels=4,
    block_out_channels=(8, 16, 24),
    attention_levels=(True, True, False),
    num_attention_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)
# Another depth, and levels without attention at both ends.
OTHER = dataclasses.replace(
    SMALL, in_channels=9, layers_per_block=1, attention_levels=(False, True, False), block_out_channels=(8, 12, 8)
)


def published(config: UNetConfig, seed: int = 0, dtype: Any = None) -> Any:
    module = diffusers.UNet2DConditionModel.from_config(to_diffusers_config(config))
    fill_randomly(module, seed)
    return module.to(dtype) if dtype is not None else module


def as_bytes(tensor: Any) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b""


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal to the bit: names, types, shapes and values."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape, name
        assert as_bytes(actual[name]) == as_bytes(tensor), name


def to_torch(tensors: list) -> dict[str, Any]:
    return {tensor.name: torch.from_numpy(tensor.read().copy()) for tensor in tensors}


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
def test_sizes_from_a_configuration_and_back(config: UNetConfig) -> None:
    module = published(config)
    assert from_diffusers_config(module.config) == config
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == torch_shapes(
        unet.DIFFUSERS, unet.shapes(config)
    )


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("float32", {"safe_serialization": False}),
        ("float32", {"max_shard_size": "100KB"}),
        ("float16", {"variant": "fp16"}),
        ("bfloat16", {"max_shard_size": "100KB"}),
    ],
    ids=["safetensors", "bin", "sharded", "fp16", "bf16-sharded"],
)
def test_a_folder_of_diffusers_there_and_back(dtype: str, options: dict[str, Any], tmp_path: Path) -> None:
    module = published(SMALL, dtype=getattr(torch, dtype))
    module.save_pretrained(tmp_path / "theirs", **options)
    found = detect(open_tensors(tmp_path / "theirs"))
    assert (found.network, found.layout, found.config) == ("unet", unet.DIFFUSERS, SMALL)
    params = import_params(found.layout, found.source, found.shapes)
    assert {array.dtype.name for array in params.values()} == {"float32"}

    module.save_config(tmp_path / "ours")
    write_tensors(
        tmp_path / "ours",
        "diffusion_pytorch_model",
        export_tensors(unet.DIFFUSERS, params),
        dtype=found.source.dtype("conv_in.weight"),
        max_shard_bytes=100_000 if "max_shard_size" in options else 10**9,
    )
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", torch_dtype=getattr(torch, dtype))
    assert_equal(again.state_dict(), module.state_dict())
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > (3 if "max_shard_size" in options else 0)


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
def test_a_single_file_as_diffusers_converts_it(config: UNetConfig, tmp_path: Path) -> None:
    state = published(config).state_dict()
    shapes = unet.shapes(config)
    params = import_params(unet.DIFFUSERS, ArraySource({n: t.numpy() for n, t in state.items()}), shapes)
    exported = {unet.LDM_PREFIX + tensor.name: tensor.read() for tensor in export_tensors(unet.LDM, params)}
    as_torch = {name: torch.from_numpy(array.copy()) for name, array in exported.items()}
    converted = single_file_utils.convert_ldm_unet_checkpoint(
        dict(as_torch), {"layers_per_block": config.layers_per_block}
    )
    assert_equal(converted, state)
    if config is SMALL:
        published(config).save_config(tmp_path / "config")
        tensors = [LazyTensor(n, a.shape, a.dtype, lambda a=a: a) for n, a in exported.items()]
        (path,) = write_tensors(tmp_path, "single", tensors)
        loaded = diffusers.UNet2DConditionModel.from_single_file(str(path), config=str(tmp_path / "config"))
        assert_equal(loaded.state_dict(), state)

    torch.save({"state_dict": as_torch, "global_step": 3}, tmp_path / "model.ckpt")
    source = with_prefix(open_tensors(tmp_path / "model.ckpt"), unet.LDM_PREFIX)
    again = import_params(unet.LDM, source, shapes)
    for path, array in params.items():
        assert again[path].tobytes() == array.tobytes(), path


def test_the_moving_average_in_a_single_file() -> None:
    shapes = unet.shapes(SMALL)
    plain, average = (
        import_params(
            unet.DIFFUSERS, ArraySource({n: t.numpy() for n, t in published(SMALL, seed).state_dict().items()}), shapes
        )
        for seed in (0, 1)
    )
    file = {unet.LDM_PREFIX + t.name: t.read() for t in export_tensors(unet.LDM, plain)}
    file |= {unet.ldm_ema_name(t.name): t.read() for t in export_tensors(unet.LDM, average)}
    file |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7), "betas": np.ones(10)}
    as_torch = {name: torch.from_numpy(np.array(array)) for name, array in file.items()}
    expected = published(SMALL, 1).state_dict()
    layers = {"layers_per_block": SMALL.layers_per_block}
    converted = single_file_utils.convert_ldm_unet_checkpoint(as_torch, layers, extract_ema=True)
    assert_equal(converted, expected)

    source = unet.ldm_ema_source(ArraySource(file, Path("sd.ckpt")), unet.LDM, shapes)
    again = import_params(unet.LDM, source, shapes)
    for path, array in average.items():
        assert again[path].tobytes() == array.tobytes(), path
    del file["model_ema.diffusion_modelout2bias"]
    with pytest.raises(WeightsError, match=r"sd.ckpt: .* 1 missing \(model_ema.diffusion_modelout2bias \[4\]\)"):
        import_params(unet.LDM, unet.ldm_ema_source(ArraySource(file, Path("sd.ckpt")), unet.LDM, shapes), shapes)
    with pytest.raises(WeightsError, match="holds no moving average"):
        unet.ldm_ema_source(ArraySource({"a": np.ones(1)}), unet.LDM, shapes)


# --------------------------------------------------------------------------------------------------- Paint by Example


def test_paint_by_example_predicts_what_diffusers_does(tmp_path: Path) -> None:
    model_config = presets.test()
    config = dataclasses.replace(model_config.unet, mask_channel="keep")
    module = published(config).eval()
    module.save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text('{"_class_name": "PaintByExamplePipeline"}')
    found = detect(open_tensors(tmp_path / "unet"))
    assert found.layout is unet.PAINT_BY_EXAMPLE and found.config == config
    params = import_params(found.layout, found.source, found.shapes)

    random = np.random.default_rng(0)
    noisy, masked = (random.standard_normal((2, 4, 8, 4), dtype=np.float32) for _ in range(2))
    mask = (random.random((2, 4, 8, 1)) > 0.5).astype(np.float32)
    tokens = random.standard_normal((2, 3, config.cross_attention_dim), dtype=np.float32)
    timesteps = np.array([5, 800])
    with torch.no_grad():
        # PaintByExamplePipeline.__call__: latents, masked image's latents, mask, of which 1 is what to keep.
        inputs = torch.from_numpy(np.concatenate([noisy, masked, 1 - mask], axis=-1)).permute(0, 3, 1, 2)
        expected = module(inputs, torch.from_numpy(timesteps), torch.from_numpy(tokens)).sample
    model = DiffuseToChoose(dataclasses.replace(model_config, unet=config))
    actual = jax.jit(model.predict)(
        {"unet": unflatten_params(params)}, noisy, mask, masked, timesteps.astype(np.float32), tokens
    )
    assert relative_l2(actual, expected.permute(0, 2, 3, 1).numpy()) <= 1e-5

    exported = to_torch(export_tensors(unet.PAINT_BY_EXAMPLE, params))
    assert_equal(exported, module.state_dict())
    ldm = {t.name: t.read() for t in export_tensors(unet.PAINT_BY_EXAMPLE_LDM, params)}
    assert ldm["input_blocks.0.0.weight"].tobytes() == module.state_dict()["conv_in.weight"].numpy().tobytes()
    again = import_params(unet.PAINT_BY_EXAMPLE_LDM, ArraySource(ldm), found.shapes)
    assert all(again[path].tobytes() == array.tobytes() for path, array in params.items())


# ---------------------------------------------------------------------------------------------------------- ControlNet


def control_net(config: UNetConfig) -> Any:
    with torch.device("cpu"):
        module = diffusers.ControlNetModel(
            in_channels=config.in_channels,
            down_block_types=tuple(to_diffusers_config(config)["down_block_types"]),
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            attention_head_dim=config.num_attention_heads,
            cross_attention_dim=config.cross_attention_dim,
            norm_num_groups=config.norm_num_groups,
            conditioning_embedding_out_channels=(4, 8),
        )
    fill_randomly(module)
    return module


def test_a_controlnet_starts_a_hint_encoder(tmp_path: Path) -> None:
    module = control_net(SMALL)
    module.save_pretrained(tmp_path)
    found = detect(open_tensors(tmp_path))
    assert (found.network, found.layout, found.config) == ("controlnet", controlnet.DIFFUSERS, SMALL)
    params = import_params(found.layout, found.source, found.shapes)
    assert {path.split("/")[0] for path in params} == {
        "conv_in", "time_embedding", "down_blocks_0", "down_blocks_1", "down_blocks_2", "mid_block"
    }  # fmt: skip
    again = to_torch([*export_tensors(found.layout, params), *ignored_tensors(found.layout, found.source)])
    assert_equal(again, module.state_dict())

    # ControlNet's own names, for the parts that we have: diffusers' conversion brings them back.
    ldm = {tensor.name: tensor for tensor in export_tensors(controlnet.LDM, params)}
    own = {controlnet.LDM_PREFIX + name: torch.from_numpy(tensor.read()) for name, tensor in ldm.items()}
    extra = {f"{controlnet.LDM_PREFIX}{n}": torch.ones(1) for n in ("input_hint_block.0.weight", "zero_convs.0.0.bias")}
    converted = single_file_utils.convert_controlnet_checkpoint(
        {**own, **extra}, {"layers_per_block": SMALL.layers_per_block}
    )
    ours = {name: t for name, t in module.state_dict().items() if not name.startswith("controlnet_")}
    assert_equal({name: converted[name] for name in ours}, ours)
    torch.save({**own, **extra, "model.diffusion_model.x": torch.ones(1)}, tmp_path / "control.pth")
    inner = with_prefix(open_tensors(tmp_path / "control.pth"), controlnet.LDM_PREFIX)
    imported = import_params(controlnet.LDM, inner, found.shapes)
    assert all(imported[path].tobytes() == array.tobytes() for path, array in params.items())


# ------------------------------------------------------------------------------------------------------ published size


@pytest.mark.parametrize(("in_channels", "parameters"), [(4, 859_520_964), (9, 859_535_364)])
def test_stable_diffusion_at_its_published_size(in_channels: int, parameters: int) -> None:
    config = dataclasses.replace(presets.sd15().unet, in_channels=in_channels)
    with torch.device("meta"):
        state = diffusers.UNet2DConditionModel.from_config(to_diffusers_config(config)).state_dict()
    # One zero per tensor, strided to its shape: no memory.
    theirs = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()}
    (found,) = detect_networks(ArraySource(theirs))
    assert (found.network, found.layout, found.config) == ("unet", unet.DIFFUSERS, config)
    assert {name: array.shape for name, array in theirs.items()} == torch_shapes(unet.DIFFUSERS, found.shapes)
    assert len(theirs) == 686 and sum(array.size for array in theirs.values()) == parameters

    ldm = torch_shapes(unet.LDM, found.shapes)
    single = {unet.LDM_PREFIX + name: torch.empty(shape, device="meta") for name, shape in ldm.items()}
    converted = single_file_utils.convert_ldm_unet_checkpoint(single, {"layers_per_block": 2})
    assert {name: tensor.shape for name, tensor in converted.items()} == {n: t.shape for n, t in state.items()}
    (found,) = detect_networks(ArraySource({n: np.broadcast_to(np.float16(0), t.shape) for n, t in single.items()}))
    assert (found.network, found.layout, found.config) == ("unet", unet.LDM, config)
    # CompVis/stable-diffusion, openaimodel.py at 21f890f: upsampling is the last of a block's layers, after a ResBlock
    # and, but on the lowest level, a transformer. (diffusers would take either index.)
    upsampling = {name for name in ldm if name.endswith(".conv.weight")}
    assert upsampling == {f"output_blocks.{place}.conv.weight" for place in ("2.1", "5.2", "8.2")}
    # The name by which diffusers itself tells such files.
    assert single_file_utils.CHECKPOINT_KEY_NAMES["v1"] in single


def test_a_controlnet_at_its_published_size() -> None:
    with torch.device("meta"):
        state = diffusers.ControlNetModel(cross_attention_dim=768).state_dict()
    source = ArraySource({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()})
    found = detect(source)
    assert (found.layout, found.config) == (
        controlnet.DIFFUSERS,
        dataclasses.replace(presets.sd15().unet, in_channels=4),
    )
    assert not str(differences(found.layout, source, found.shapes))
    assert (len(state), len(ignored_tensors(found.layout, source))) == (340, 42)
    assert found.shapes == flax_shapes(DiffuseToChoose(presets.sd15()).shapes()["hint_encoder"])
