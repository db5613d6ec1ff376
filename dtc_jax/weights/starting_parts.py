"""The parts that a model starts from: found in files, copied from one another, or drawn afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dtc_jax.config import CLIPVisionConfig, DataConfig, ModelConfig
from dtc_jax.data.tokenizer import Tokenizer
from dtc_jax.models.initialize import RULES, initialize
from dtc_jax.weights import autoencoder_tiny
from dtc_jax.weights.detect import detect, detect_networks
from dtc_jax.weights.layouts import Shapes
from dtc_jax.weights.mapping import import_tensors
from dtc_jax.weights.prompts import TOKENIZER, encode_prompts
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.tensors import LazyTensor, WeightsError, lacks_variant, open_tensors
from dtc_jax.weights.unet import LDM_EMA_PREFIX

_REPLICATED = ("conv_in/", "time_embedding/", "down_blocks_", "mid_block/")


def base_networks(path: Path, variant: str | None) -> dict[str, Detected]:
    """Networks of a folder of several, of a single file, or of a folder of one.

    Of a folder of several, not every network need have the variant: it is often published of the U-Net alone.
    """
    folders = [path / name for name in ("unet", "vae") if (path / name).is_dir()]
    if folders:
        if (path / "image_encoder").is_dir() and "PaintByExample" in _text(path / "model_index.json"):
            folders.append(path / "image_encoder")
        sources = [open_tensors(folder, variant, or_plain=True) for folder in folders]
        if all(lacks_variant(source, path, variant) for source in sources):
            sources = [open_tensors(folder, variant) for folder in folders]
    else:
        sources = [open_tensors(path, variant)]
    found: dict[str, Detected] = {}
    for source in sources:
        found |= {detected.network: detected for detected in detect_networks(source)}
    return found


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def starting_unet(found: Mapping[str, Detected], ema: bool, path: Path) -> Detected:
    """The U-Net of a base, or its moving average.

    Raises:
        WeightsError: the base holds no such thing.
    """
    network = "unet_ema" if ema else "unet"
    if ema and "unet" in found and network not in found:
        raise WeightsError(
            f"{path}: holds no moving average ({LDM_EMA_PREFIX}*); leave --ema out (what is published as "
            "emaonly has it under the plain names)"
        )
    if network not in found:
        raise WeightsError(f"{path}: holds {', '.join(found)}, expected {network} (Stable Diffusion 1.x)")
    return found[network]


def part(path: Path | None, network: str, variant: str | None) -> Detected | None:
    if path is None:
        return None
    inner = path / network if network == "vae" and (path / network).is_dir() else path
    return detect(open_tensors(inner, variant, or_plain=True), network)


TAESD_FILES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")


def is_taesd(path: Path | None) -> bool:
    return path is not None and all((path / name).is_file() for name in TAESD_FILES)


def taesd(path: Path | None) -> tuple[Detected, list[LazyTensor]]:
    """TAESD's two files as one autoencoder."""
    assert path is not None
    encoder, decoder = (detect(open_tensors(path / name), Path(name).stem) for name in TAESD_FILES)
    if decoder.config != encoder.config:
        raise WeightsError(f"{path}: encoder and decoder are of different sizes")
    tensors = [*imported(encoder, encoder.shapes), *imported(decoder, decoder.shapes)]
    whole = replace(encoder, network="vae", shapes=autoencoder_tiny.shapes(encoder.config))
    return whole, tensors


def imported(detected: Detected, wanted: Shapes) -> list[LazyTensor]:
    """The tensors that the model has (of VGG-19, say, all but the last convolutions).

    Raises:
        WeightsError: a network of other sizes.
    """
    for path, shape in wanted.items():
        if detected.shapes.get(path) != shape:
            found = detected.shapes.get(path)
            what = f"{path} is {list(found)}" if found else f"no {path}"
            raise WeightsError(f"{detected.source.path}: does not fit the model: {what}, expected {list(shape)}")
    tensors = import_tensors(detected.layout, detected.source, detected.shapes)
    return [tensor for tensor in tensors if tensor.name in wanted]


def replica(unet: Sequence[LazyTensor], wanted: Shapes) -> list[LazyTensor]:
    """The hint encoder: the U-Net's encoder and middle; the first convolution's part that reads the noisy latents."""

    def copied(tensor: LazyTensor) -> LazyTensor:
        shape = wanted[tensor.name]
        if tensor.shape == shape:
            return tensor
        return replace(tensor, shape=shape, read=lambda: np.ascontiguousarray(tensor.read()[:, :, : shape[2], :]))

    return [copied(tensor) for tensor in unet if tensor.name.startswith(_REPLICATED)]


CLIP_ENCODERS = {"clip": "vision_model/", "clip_vision": "vision_model/", "paint_by_example_encoder": "model/"}
"""Files that hold CLIP's image encoder, and where in them it is, if not at the top."""


def reference_encoder(path: Path | None, variant: str | None) -> Detected | None:
    """DINOv2, or a file with CLIP's image encoder in it.

    Raises:
        WeightsError: it holds neither.
    """
    if path is None:
        return None
    found = {detected.network: detected for detected in detect_networks(open_tensors(path, variant, or_plain=True))}
    known = [found[name] for name in ("dinov2", *CLIP_ENCODERS) if name in found]
    if known:
        return known[0]
    raise WeightsError(f"{path}: holds {', '.join(found)}, expected dinov2 or CLIP's image encoder")


def text_encoder(path: Path | None, variant: str | None) -> tuple[Detected, Path] | None:
    """CLIP's text encoder and the folder of its tokenizer, in a folder as Stable Diffusion is published.

    Raises:
        WeightsError: one of the two is not there.
    """
    if path is None:
        return None
    inner, tokenizer = path / "text_encoder", path / TOKENIZER
    if not (inner.is_dir() and tokenizer.is_dir()):
        raise WeightsError(f"{path}: needs text_encoder/ and tokenizer/, as Stable Diffusion's folders have them")
    return detect(open_tensors(inner, variant, or_plain=True), "clip_text"), tokenizer


def encoded_prompts(
    model: ModelConfig, data: DataConfig, encoder: Sequence[LazyTensor], tokenizer: Tokenizer
) -> dict[str, list[LazyTensor]]:
    """The networks `prompts` and `null_tokens`, computed once when the first is read.

    Args:
        model: Its `reference_encoder` is a text encoder.
        data: Its prompts.
        encoder: Parameters of the text encoder.
        tokenizer: For it.
    """

    @cache
    def computed() -> dict[str, np.ndarray]:
        params = unflatten_dict({tensor.name: np.asarray(tensor.read(), np.float32) for tensor in encoder}, sep="/")
        return flatten_dict(encode_prompts(model, data, params, tokenizer), sep="/")

    shape = (1, model.num_reference_tokens, model.unet.cross_attention_dim)

    def tensor(network: str, name: str) -> LazyTensor:
        return LazyTensor(name, shape, np.dtype(np.float32), lambda: computed()[f"{network}/{name}"])

    names = {"prompts": ("product", "class"), "null_tokens": ("embedding",)}
    return {network: [tensor(network, name) for name in names[network]] for network in names}


def vision_config(detected: Detected) -> CLIPVisionConfig:
    """The image encoder's sizes, of what `CLIP_ENCODERS` names."""
    return getattr(detected.config, "vision", detected.config)


def clip_parts(detected: Detected, projection: Shapes) -> tuple[list[LazyTensor], list[LazyTensor]]:
    """CLIP's image encoder, and what Paint by Example has trained after it (nothing of plain CLIP).

    Args:
        detected: What `CLIP_ENCODERS` names.
        projection: Paths and shapes of a model's `reference_projection`; taken if all of them are there.
    """
    tensors = import_tensors(detected.layout, detected.source, detected.shapes)
    prefix = CLIP_ENCODERS[detected.network]
    inner = [replace(t, name=t.name.removeprefix(prefix)) for t in tensors if t.name.startswith(prefix)]
    after = [t for t in tensors if projection.get(t.name) == t.shape]
    return inner or tensors, after if len(after) == len(projection) else []


def null_tokens(base: Mapping[str, Detected], wanted: Shapes) -> list[LazyTensor] | None:
    """Paint by Example's null vector, if that is what the base is."""
    encoder = base.get("paint_by_example_encoder")
    if encoder is None or encoder.shapes["uncond_vector"] != wanted["embedding"]:
        return None
    tensors = import_tensors(encoder.layout, encoder.source, encoder.shapes)
    return [replace(tensor, name="embedding") for tensor in tensors if tensor.name == "uncond_vector"]


def fresh(network: str, shapes: Shapes, config: ModelConfig, seed: int) -> list[LazyTensor]:
    """As `DiffuseToChoose.init` draws them, one at a time."""
    last = len(config.hint.adapter_channels)
    rules = ((rf"^hint_adapter/convs_{last}/kernel$", "zeros"), *RULES)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        target: dict[str, Any] = unflatten_dict({f"{network}/{path}": jax.ShapeDtypeStruct(shape, np.float32)}, sep="/")
        drawn = initialize(target, jax.random.key(seed), rules)
        return next(iter(flatten_dict(drawn, sep="/").values()))

    return [LazyTensor(path, shape, np.dtype(np.float32), partial(draw, path, shape)) for path, shape in shapes.items()]
