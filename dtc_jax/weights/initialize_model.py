"""A complete model folder, ready to train, from published parts.

From a Stable Diffusion 1.x (or its inpainting model, or Paint by Example) alone: U-Net with as many input channels as
are needed (zeros appended), the hint encoder as a copy of its encoder and middle, the autoencoder; adapter, fusion,
token projection, null tokens fresh. DINOv2, VGG and a ControlNet for the hint encoder come with it or are fresh, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from dtc_jax.config import ConfigError, DINOv2Config, ExperimentConfig, ModelConfig, VGGConfig, config_to_json
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.initialize import RULES, initialize
from dtc_jax.weights import autoencoder_tiny
from dtc_jax.weights.detect import detect, detect_networks
from dtc_jax.weights.diffuse_to_choose import with_more_inputs
from dtc_jax.weights.export_pytorch import is_exported_folder, open_exported
from dtc_jax.weights.layouts import Shapes, flax_shapes
from dtc_jax.weights.mapping import import_tensors
from dtc_jax.weights.model_folder import CONFIG_FILE
from dtc_jax.weights.new_folder import new_folder
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.sources import Source, imported_from, write_sources
from dtc_jax.weights.tensors import LazyTensor, WeightsError, open_tensors, write_tensors

_NO_LIMIT = 2**62
_REPLICATED = ("conv_in/", "time_embedding/", "down_blocks_", "mid_block/")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files and folders to start from.

    Attributes:
        base: Stable Diffusion 1.x, its inpainting model or Paint by Example: diffusers' folder or a single file; or a
            folder that was exported, for the way back.
        vae: Another autoencoder (AutoencoderKL, TAESD); needed if `base` is a U-Net alone.
        reference_encoder: DINOv2.
        vgg: torchvision's VGG-19.
        hint_encoder: A ControlNet.
        variant: Of the files in folders, e.g. `fp16`.
        ema: Take the moving average of a single file that holds both.
    """

    base: Path
    vae: Path | None = None
    reference_encoder: Path | None = None
    vgg: Path | None = None
    hint_encoder: Path | None = None
    variant: str | None = None
    ema: bool = False


@dataclass(frozen=True)
class Start:
    """A model that is going to be written.

    Attributes:
        config: Its configuration.
        networks: Tensors of each network, named by Flax paths.
        sources: One per network: where it came from.
    """

    config: ExperimentConfig
    networks: Mapping[str, Sequence[LazyTensor]]
    sources: Sequence[Source]


def initialize_model(
    parts: Parts,
    target: Path,
    *,
    image_size: int = 512,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    report: Callable[[Source], None] = lambda source: None,
) -> Start:
    """Write a model folder.

    Args:
        parts: What to start from.
        target: The new folder.
        image_size: Height and width of the scene in pixels.
        seed: Of what is drawn afresh.
        dtype: Of the weights; None keeps the files' (what is fresh is float32).
        report: Called for every network when it has been written.

    Raises:
        WeightsError: anything wrong with the files or the folder; nothing is left of the folder then.
    """
    if target.exists():
        raise WeightsError(f"{target}: exists already; choose another name or remove it")
    start = start_from(parts, image_size, seed)
    with new_folder(target) as folder:
        for source in start.sources:
            tensors = start.networks[source.network]
            write_tensors(folder, source.network, tensors, dtype, _NO_LIMIT, {"format": "flax"})
            report(source)
        write_sources(folder, start.sources)
        (folder / CONFIG_FILE).write_text(config_to_json(start.config))
    return start


def start_from(parts: Parts, image_size: int = 512, seed: int = 0) -> Start:
    """What `initialize_model` writes; nothing but names and shapes is read yet."""
    if parts.base.is_dir() and is_exported_folder(parts.base):
        return _from_exported(parts)
    base = _base_networks(parts.base, parts.variant)
    unet = _network(base, "unet_ema" if parts.ema else "unet", parts.base)
    found = {
        "vae": None if _is_taesd(parts.vae) else _part(parts.vae, "vae", parts.variant) or base.get("vae"),
        "reference_encoder": _part(parts.reference_encoder, "dinov2", parts.variant),
        "vgg": _part(parts.vgg, "vgg", parts.variant),
        "hint_encoder": _part(parts.hint_encoder, "controlnet", parts.variant),
    }
    taesd = _taesd(parts.vae) if _is_taesd(parts.vae) else None
    autoencoder = taesd[0] if taesd else found["vae"]
    if autoencoder is None:
        raise WeightsError(f"{parts.base}: holds no autoencoder; name one as the vae")
    config = _configuration(parts.base, unet, autoencoder, found, image_size)
    model = config.model
    shapes = {name: flax_shapes(tree) for name, tree in DiffuseToChoose(model).shapes().items()}

    networks: dict[str, list[LazyTensor]] = {}
    sources: list[Source] = []

    def add(network: str, tensors: list[LazyTensor], source: Source) -> None:
        networks[network] = tensors
        sources.append(source)

    def add_imported(network: str, detected: Detected) -> None:
        add(network, _import(detected, shapes[network]), _source(network, detected))

    def add_fresh(network: str, why: str) -> None:
        add(network, _fresh(network, shapes[network], model, seed), Source(network=network, origin=why))

    tensors = import_tensors(unet.layout, unet.source, unet.shapes)
    unet_source = _source("unet", unet)
    if unet.config.in_channels != model.unet.in_channels:
        change = f"{unet.config.in_channels} input channels, extended to {model.unet.in_channels} with zeros"
        unet_source = replace(unet_source, layout=f"{unet_source.layout}; {change}")
    add("unet", with_more_inputs(tensors, model.unet.in_channels), unet_source)
    if found["hint_encoder"] is not None:
        add_imported("hint_encoder", found["hint_encoder"])
    else:
        origin = f"a copy of the unet's encoder and middle, from {unet.source.path}"
        replica = _replica(networks["unet"], shapes["hint_encoder"])
        add("hint_encoder", replica, imported_from("hint_encoder", origin, unet.layout.name))
    add_fresh("hint_adapter", "fresh; its last convolution is zero")
    add_fresh("fusion", "fresh: zeros, the identity")
    add_fresh("reference_projection", "fresh")
    null = _null_tokens(base, shapes["null_tokens"])
    if null is not None:
        add("null_tokens", null, replace(unet_source, network="null_tokens", layout="Paint by Example's null vector"))
    else:
        add_fresh("null_tokens", "fresh")
    if taesd is not None:
        add("vae", taesd[1], imported_from("vae", str(parts.vae), taesd[0].layout.name))
    elif found["vae"] is not None:
        add_imported("vae", found["vae"])
    for network, advice in (("reference_encoder", "DINOv2"), ("vgg", "VGG-19")):
        detected = found[network]
        if detected is not None:
            add_imported(network, detected)
        else:
            add_fresh(network, f"fresh, untrained; give {advice} for anything but a try")
    return Start(config, networks, sources)


# ------------------------------------------------------------------------------------------------------------ parts


def _base_networks(path: Path, variant: str | None) -> dict[str, Detected]:
    """Networks of a folder of several, of a single file, or of a folder of one."""
    if path.is_dir() and any((path / name).is_dir() for name in ("unet", "vae")):
        sources = [open_tensors(path / name, variant) for name in ("unet", "vae") if (path / name).is_dir()]
        if (path / "image_encoder").is_dir() and "PaintByExample" in _text(path / "model_index.json"):
            sources.append(open_tensors(path / "image_encoder", variant))
    else:
        sources = [open_tensors(path, variant)]
    found: dict[str, Detected] = {}
    for source in sources:
        found |= {detected.network: detected for detected in detect_networks(source)}
    return found


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _network(found: Mapping[str, Detected], network: str, path: Path) -> Detected:
    if network not in found:
        raise WeightsError(f"{path}: holds {', '.join(found)}, expected {network} (Stable Diffusion 1.x)")
    return found[network]


def _part(path: Path | None, network: str, variant: str | None) -> Detected | None:
    if path is None:
        return None
    inner = path / network if network == "vae" and (path / network).is_dir() else path
    return detect(open_tensors(inner, variant), network)


_TAESD_FILES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")


def _is_taesd(path: Path | None) -> bool:
    return path is not None and all((path / name).is_file() for name in _TAESD_FILES)


def _taesd(path: Path | None) -> tuple[Detected, list[LazyTensor]]:
    """TAESD's two files as one autoencoder."""
    assert path is not None
    encoder, decoder = (detect(open_tensors(path / name)) for name in _TAESD_FILES)
    if decoder.config != encoder.config:
        raise WeightsError(f"{path}: encoder and decoder are of different sizes")
    tensors = [*_import(encoder, encoder.shapes), *_import(decoder, decoder.shapes)]
    whole = replace(encoder, network="vae", shapes=autoencoder_tiny.shapes(encoder.config))
    return whole, tensors


def _import(detected: Detected, wanted: Shapes) -> list[LazyTensor]:
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


def _replica(unet: Sequence[LazyTensor], wanted: Shapes) -> list[LazyTensor]:
    """The hint encoder: the U-Net's encoder and middle; the first convolution's part that reads the noisy latents."""

    def copied(tensor: LazyTensor) -> LazyTensor:
        shape = wanted[tensor.name]
        if tensor.shape == shape:
            return tensor
        return replace(tensor, shape=shape, read=lambda: np.ascontiguousarray(tensor.read()[:, :, : shape[2], :]))

    return [copied(tensor) for tensor in unet if tensor.name.startswith(_REPLICATED)]


def _null_tokens(base: Mapping[str, Detected], wanted: Shapes) -> list[LazyTensor] | None:
    """Paint by Example's null vector, if that is what the base is."""
    encoder = base.get("paint_by_example_encoder")
    if encoder is None or encoder.shapes["uncond_vector"] != wanted["embedding"]:
        return None
    tensors = import_tensors(encoder.layout, encoder.source, encoder.shapes)
    return [replace(tensor, name="embedding") for tensor in tensors if tensor.name == "uncond_vector"]


def _fresh(network: str, shapes: Shapes, config: ModelConfig, seed: int) -> list[LazyTensor]:
    """As `DiffuseToChoose.init` draws them, one at a time."""
    last = len(config.hint.adapter_channels)
    rules = ((rf"^hint_adapter/convs_{last}/kernel$", "zeros"), *RULES)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        target: dict[str, Any] = unflatten_dict({f"{network}/{path}": jax.ShapeDtypeStruct(shape, np.float32)}, sep="/")
        drawn = initialize(target, jax.random.key(seed), rules)
        return next(iter(flatten_dict(drawn, sep="/").values()))

    return [LazyTensor(path, shape, np.dtype(np.float32), partial(draw, path, shape)) for path, shape in shapes.items()]


def _source(network: str, detected: Detected) -> Source:
    return imported_from(network, str(detected.source.path), detected.layout.name)


def _configuration(
    base: Path, unet: Detected, vae: Detected, found: Mapping[str, Detected | None], image_size: int
) -> ExperimentConfig:
    latents = vae.config.latent_channels
    if unet.config.in_channels not in (latents, 2 * latents + 1) or unet.config.out_channels != latents:
        raise WeightsError(
            f"{unet.source.path}: reads {unet.config.in_channels} channels and returns {unet.config.out_channels}, "
            f"expected {latents} or {2 * latents + 1} and {latents}: the autoencoder has {latents}"
        )
    reference, vgg = found["reference_encoder"], found["vgg"]
    try:
        model = ModelConfig(
            image_size=image_size,
            unet=replace(unet.config, in_channels=2 * latents + 1),
            vae=vae.config,
            reference_encoder=reference.config if reference else DINOv2Config(position_image_size=518),
            vgg=vgg.config if vgg else VGGConfig(),
        )
    except ConfigError as error:
        raise WeightsError(f"{base}: the parts do not go together: {error}") from None
    return ExperimentConfig(model=model)


def _from_exported(parts: Parts) -> Start:
    """The way back from an exported folder."""
    others = [name for name in ("vae", "reference_encoder", "hint_encoder") if getattr(parts, name) is not None]
    if others:
        raise WeightsError(f"{parts.base}: is a whole model; {', '.join(others)} cannot be replaced in it")
    exported = open_exported(parts.base)
    known = {source.network: source for source in exported.sources}
    networks = dict(exported.networks)
    sources = [
        replace(known.get(name, Source(network=name, origin="")), origin=_through(known.get(name), parts.base))
        for name in networks
    ]
    if parts.vgg is not None:
        detected = _part(parts.vgg, "vgg", parts.variant)
        assert detected is not None
        wanted = flax_shapes(DiffuseToChoose(exported.config.model).shapes()["vgg"])
        networks["vgg"] = _import(detected, wanted)
        sources = [*(source for source in sources if source.network != "vgg"), _source("vgg", detected)]
    return Start(exported.config, networks, sources)


def _through(source: Source | None, folder: Path) -> str:
    return f"{source.origin}, through {folder}" if source and source.origin else str(folder)
