"""TAESD against diffusers' `AutoencoderTiny`: random, and with its published weights on real photos."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dtc_jax import presets
from dtc_jax.config import AutoencoderTinyConfig
from dtc_jax.models.autoencoder_kl import scale
from dtc_jax.models.autoencoder_tiny import AutoencoderTiny
from dtc_jax.weights.autoencoder_tiny import DIFFUSERS, TAESD_DECODER, TAESD_ENCODER, part_shapes, shapes
from dtc_jax.weights.mapping import export_tensors, import_params, torch_shapes
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import ArraySource, open_tensors
from tests.parity.conversion import assert_exact_round_trip, imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5
CONFIG = AutoencoderTinyConfig(
    latent_channels=6, channels=8, num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 3)
)


def oracle(config: AutoencoderTinyConfig) -> torch.nn.Module:
    levels = len(config.num_encoder_blocks)
    return diffusers.AutoencoderTiny(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        encoder_block_out_channels=(config.channels,) * levels,
        decoder_block_out_channels=(config.channels,) * levels,
        latent_channels=config.latent_channels,
        num_encoder_blocks=config.num_encoder_blocks,
        num_decoder_blocks=config.num_decoder_blocks,
    ).eval()


def run_oracle(module: torch.nn.Module, images: np.ndarray, latents: np.ndarray | None = None) -> list[np.ndarray]:
    """Latents of the images, and images of the latents (of the same ones if there are none)."""
    with torch.no_grad():
        encoded = module.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents
        given = encoded if latents is None else torch.from_numpy(latents).permute(0, 3, 1, 2)
        decoded = module.decode(given).sample
    return [tensor.permute(0, 2, 3, 1).numpy() for tensor in (encoded, decoded)]


def run(config: AutoencoderTinyConfig):
    @jax.jit
    def both(params, images, latents):
        model = AutoencoderTiny(config)
        return (*model.apply(params, images, method="encode"), model.apply(params, latents, method="decode"))

    return both


def test_encode_and_decode_match_diffusers() -> None:
    reference = oracle(CONFIG)
    fill_randomly(reference, seed=1)
    random = np.random.default_rng(2)
    images = random.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    latents = random.normal(size=(2, 4, 6, 6)).astype(np.float32) * 3  # beyond the limit of 3 too
    params = imported(reference.state_dict(), DIFFUSERS, shapes(CONFIG))
    expected = run_oracle(reference, images, latents)
    encoded, logvar, decoded = run(CONFIG)(params, images, latents)
    for name, actual, wanted in zip(("encode", "decode"), (encoded, decoded), expected, strict=True):
        assert wanted.std() > 0.1, f"{name}: the oracle's output hardly varies, the comparison would prove nothing"
        assert relative_l2(actual, wanted) <= TOLERANCE, name
    np.testing.assert_array_equal(logvar, jnp.full_like(encoded, -30.0))
    np.testing.assert_array_equal(scale(encoded, CONFIG), encoded)


def test_published_size() -> None:
    config = presets.taesd()
    with torch.device("meta"):
        published = diffusers.AutoencoderTiny()
    expected = {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}
    assert torch_shapes(DIFFUSERS, shapes(config)) == expected
    assert len(expected) == 134
    assert published.config.scaling_factor == config.scaling_factor and config.factor == 8


def test_round_trip_is_exact() -> None:
    reference = oracle(CONFIG)
    fill_randomly(reference)
    assert_exact_round_trip(reference.state_dict(), DIFFUSERS, shapes(CONFIG))


def test_taesd_names_are_diffusers_without_the_latents_limit() -> None:
    """The two files' names against diffusers': the decoder's first layer limits latents and has no parameters."""
    wanted = shapes(CONFIG)
    params = {path: np.full(shape, number, np.float32) for number, (path, shape) in enumerate(wanted.items())}
    names = {float(tensor.read().flat[0]): tensor.name for tensor in export_tensors(DIFFUSERS, params)}
    for layout, part, offset in ((TAESD_ENCODER, "encoder", 0), (TAESD_DECODER, "decoder", 1)):
        chosen = {path: params[path] for path in part_shapes(wanted, part)}
        for tensor in export_tensors(layout, chosen):
            index, rest = tensor.name.split(".", 1)
            assert names[float(tensor.read().flat[0])] == f"{part}.layers.{int(index) - offset}.{rest}"


# ------------------------------------------------------------------------------------- published weights, real photos


def published_weights(folder: Path) -> tuple[dict, torch.nn.Module]:
    """Flax variables, read by the conversion, and diffusers' module, filled from the same files by hand."""
    config = presets.taesd()
    params, state = {}, {}
    for part, layout, offset in (("encoder", TAESD_ENCODER, 0), ("decoder", TAESD_DECODER, -1)):
        source = open_tensors(folder / f"taesd_{part}.safetensors")
        params |= import_params(layout, source, part_shapes(shapes(config), part))
        for name in source.keys():  # noqa: SIM118
            index, rest = name.split(".", 1)
            tensor = torch.from_numpy(source.read(name).astype(np.float32))
            state[f"{part}.layers.{int(index) + offset}.{rest}"] = tensor
    reference = oracle(config)
    reference.load_state_dict(state)
    return {"params": unflatten_params(params)}, reference


def photo(path: Path, height: int, width: int) -> np.ndarray:
    """A photo in [-1, 1], fitted to a size."""
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 127.5 - 1


def photos_of(folder: Path) -> list[Path]:
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    return [folder / case[field] for case in cases for field in ("scene", "reference")]


def test_files_round_trip(real_weights: Path) -> None:
    for part, layout in (("encoder", TAESD_ENCODER), ("decoder", TAESD_DECODER)):
        source = open_tensors(real_weights / f"taesd_{part}.safetensors")
        state = {name: source.read(name) for name in source.keys()}  # noqa: SIM118
        wanted = part_shapes(shapes(presets.taesd()), part)
        assert_exact_round_trip(state, layout, wanted)
        params = import_params(layout, ArraySource(state), wanted)
        assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}


def check_photos(paths: list[Path], weights: Path, height: int, width: int) -> None:
    """Encode and decode two photos at a time: equal to diffusers to 1e-4 absolute, and close to the photo itself."""
    params, reference = published_weights(weights)
    apply = run(presets.taesd())
    for first in range(0, len(paths), 2):
        pair = paths[first : first + 2]
        images = np.stack([photo(path, height, width) for path in pair])
        expected_latents, expected = run_oracle(reference, images)
        latents, _, _ = apply(params, images, expected_latents)
        _, _, decoded = apply(params, images, latents)  # ours from the image to the image
        errors = [np.abs(a - b).max() for a, b in ((latents, expected_latents), (decoded, expected))]
        similarity = -10 * np.log10(np.mean((np.clip(decoded, -1, 1) - images) ** 2, axis=(1, 2, 3)) / 4)
        print(f"{pair}: latents {errors[0]:.1e}, images {errors[1]:.1e}, PSNR {similarity.round(1)} dB")
        assert max(errors) <= 1e-4, pair
        assert similarity.min() > 18, f"{pair}: what comes back does not look like what went in"


def test_published_weights_on_two_photos(real_weights: Path, real_inputs: Path) -> None:
    check_photos(photos_of(real_inputs)[:2], real_weights, 96, 128)


@pytest.mark.slow
def test_published_weights_on_all_photos(real_weights: Path, real_inputs: Path) -> None:
    paths = photos_of(real_inputs)
    assert len(paths) >= 32
    check_photos(paths, real_weights, 512, 384)
