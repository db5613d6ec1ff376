"""A complete model folder, ready to train, from published parts.

From a Stable Diffusion 1.x (or its inpainting model, or Paint by Example) alone: U-Net with as many input channels as
are needed (zeros appended), the hint encoder as a copy of its encoder and middle, the autoencoder; adapter, fusion,
token projection, null tokens fresh. DINOv2, VGG and a ControlNet for the hint encoder come with it or are fresh, too.
CLIP in the place of DINOv2 makes it a start of Paint by Example, without a hint; HED one whose hint is edges; CLIP's
text encoder one of DreamPaint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jax.typing import DTypeLike

from dtc_jax.config import ExperimentConfig, config_to_json
from dtc_jax.data.tokenizer import Tokenizer, read_files
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.diffuse_to_choose import with_more_inputs
from dtc_jax.weights.export_pytorch import is_exported_folder, lost_of_export, open_exported
from dtc_jax.weights.layouts import flax_shapes
from dtc_jax.weights.mapping import import_tensors
from dtc_jax.weights.model_folder import CONFIG_FILE
from dtc_jax.weights.new_folder import new_folder, refuse_existing
from dtc_jax.weights.prompts import TOKENIZER
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.sources import Source, imported_from, write_sources
from dtc_jax.weights.starting_config import starting_config
from dtc_jax.weights.starting_parts import (
    CLIP_ENCODERS,
    base_networks,
    clip_parts,
    encoded_prompts,
    fresh,
    imported,
    is_taesd,
    null_tokens,
    part,
    reference_encoder,
    replica,
    starting_unet,
    taesd,
    text_encoder,
)
from dtc_jax.weights.tensors import LazyTensor, WeightsError, lacks_variant, write_tensors
from dtc_jax.weights.training_data import DATA_FILE, TrainingData

_NO_LIMIT = 2**62


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files and folders to start from.

    Attributes:
        base: Stable Diffusion 1.x, its inpainting model or Paint by Example: diffusers' folder or a single file; or a
            folder that was exported, for the way back.
        vae: Another autoencoder (AutoencoderKL, TAESD); needed if `base` is a U-Net alone.
        reference_encoder: DINOv2; or CLIP, or Paint by Example's image encoder.
        vgg: torchvision's VGG-19.
        hint_encoder: A ControlNet.
        hed: ControlNet's HED.
        text_encoder: Stable Diffusion's folder with text_encoder/ and tokenizer/, in place of a reference encoder.
        variant: Of the files in folders, e.g. `fp16`.
        ema: Take the moving average of a single file that holds both.
    """

    base: Path
    vae: Path | None = None
    reference_encoder: Path | None = None
    vgg: Path | None = None
    hint_encoder: Path | None = None
    hed: Path | None = None
    text_encoder: Path | None = None
    variant: str | None = None
    ema: bool = False


@dataclass(frozen=True)
class Start:
    """A model that is going to be written.

    Attributes:
        config: Its configuration.
        networks: Tensors of each network, named by Flax paths.
        sources: One per network: where it came from.
        data: What it was trained on, if it was.
        tokenizer: Of its prompts, if it has any.
    """

    config: ExperimentConfig
    networks: Mapping[str, Sequence[LazyTensor]]
    sources: Sequence[Source]
    data: TrainingData | None = None
    tokenizer: Tokenizer | None = None


def initialize_model(
    parts: Parts,
    target: Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    report: Callable[[Source], None] = lambda source: None,
) -> Start:
    """Write a model folder.

    Args:
        parts: What to start from.
        target: The new folder.
        image_size: Height and width of the scene in pixels; None: 512, or that of an exported base.
        seed: Of what is drawn afresh.
        dtype: Of the weights; None keeps the files' (what is fresh is float32).
        report: Called for every network when it has been written.

    Raises:
        WeightsError: anything wrong with the files or the folder; nothing is left of the folder then.
    """
    refuse_existing(target)
    start = start_from(parts, image_size, seed)
    with new_folder(target) as folder:
        for source in start.sources:
            tensors = start.networks[source.network]
            write_tensors(folder, source.network, tensors, dtype, _NO_LIMIT, {"format": "flax"})
            report(source)
        write_sources(folder, start.sources)
        if start.data is not None:
            (folder / DATA_FILE).write_text(start.data.to_json())
        if start.tokenizer is not None:
            (folder / TOKENIZER).mkdir()
            for name, text in start.tokenizer.files.items():
                (folder / TOKENIZER / name).write_text(text, encoding="utf-8")
        (folder / CONFIG_FILE).write_text(config_to_json(start.config))
    return start


def start_from(parts: Parts, image_size: int | None = None, seed: int = 0) -> Start:
    """What `initialize_model` writes; nothing but names and shapes is read yet."""
    if parts.base.is_dir() and is_exported_folder(parts.base):
        if image_size is not None:
            raise WeightsError(f"{parts.base}: was exported for an image size of its own; leave --image-size out")
        return _from_exported(parts)
    lost = lost_of_export(parts.base)
    if lost is not None:
        raise WeightsError(f"{parts.base}: has parts of an exported model, but no {lost}; export it again")
    base = base_networks(parts.base, parts.variant)
    unet = starting_unet(base, parts.ema, parts.base)
    found = {
        "vae": None if is_taesd(parts.vae) else part(parts.vae, "vae", parts.variant) or base.get("vae"),
        "reference_encoder": reference_encoder(parts.reference_encoder, parts.variant),
        "vgg": part(parts.vgg, "vgg", parts.variant),
        "hint_encoder": part(parts.hint_encoder, "controlnet", parts.variant),
        "hed": part(parts.hed, "hed", parts.variant),
    }
    words = text_encoder(parts.text_encoder, parts.variant)
    if words is not None:
        unused = [name for name in ("reference_encoder", "hint_encoder", "hed") if found[name] is not None]
        if unused:
            raise WeightsError(f"{parts.text_encoder}: with a text encoder there is no use for {', '.join(unused)}")
        found["text_encoder"] = words[0]
    small = taesd(parts.vae) if is_taesd(parts.vae) else None
    autoencoder = small[0] if small else found["vae"]
    if autoencoder is None:
        raise WeightsError(f"{parts.base}: holds no autoencoder; name one as the vae")
    config = starting_config(parts.base, unet, autoencoder, found, image_size or 512)
    model = config.model
    shapes = {name: flax_shapes(tree) for name, tree in DiffuseToChoose(model).shapes().items()}

    networks: dict[str, list[LazyTensor]] = {}
    sources: list[Source] = []

    def add(network: str, tensors: list[LazyTensor], source: Source) -> None:
        networks[network] = tensors
        sources.append(source)

    def add_imported(network: str, detected: Detected) -> None:
        add(network, imported(detected, shapes[network]), _source(network, detected, parts))

    def add_fresh(network: str, why: str) -> None:
        add(network, fresh(network, shapes[network], model, seed), Source(network=network, origin=why))

    tensors = import_tensors(unet.layout, unet.source, unet.shapes)
    unet_source = _source("unet", unet, parts)
    if parts.ema:
        unet_source = replace(unet_source, layout=f"{unet_source.layout}; moving average")
    if unet.config.in_channels != model.unet.in_channels:
        change = f"{unet.config.in_channels} input channels, extended to {model.unet.in_channels} with zeros"
        unet_source = replace(unet_source, layout=f"{unet_source.layout}; {change}")
    add("unet", with_more_inputs(tensors, model.unet.in_channels), unet_source)
    if model.hint.kind != "none":
        if found["hint_encoder"] is not None:
            add_imported("hint_encoder", found["hint_encoder"])
        else:
            origin = f"a copy of the unet's encoder and middle, from {unet.source.path}"
            copy = replica(networks["unet"], shapes["hint_encoder"])
            add("hint_encoder", copy, imported_from("hint_encoder", origin, unet.layout.name))
        add_fresh("hint_adapter", "fresh; its last convolution is zero")
        add_fresh("fusion", "fresh: zeros, the identity")
    if found["hed"] is not None:
        add_imported("hed", found["hed"])
    clip, tokenizer = found["reference_encoder"], None
    if words is not None:
        encoder, where = imported(words[0], shapes["reference_encoder"]), words[1]
        tokenizer = Tokenizer(read_files(where), str(where))
        add("reference_encoder", encoder, _source("text_encoder", words[0], parts, "reference_encoder"))
        for name, tokens in encoded_prompts(model, config.data, encoder, tokenizer).items():
            add(name, tokens, Source(network=name, origin=f"encoded by {words[0].source.path}"))
    elif clip is not None and clip.network in CLIP_ENCODERS:
        encoder, projection = clip_parts(clip, shapes["reference_projection"])
        add("reference_encoder", encoder, _source("reference_encoder", clip, parts))
        if projection:
            add("reference_projection", projection, _source("reference_projection", clip, parts))
        else:
            add_fresh("reference_projection", "fresh")
    else:
        add_fresh("reference_projection", "fresh")
    null = None if words else null_tokens(base, shapes["null_tokens"])
    if null is not None:
        add("null_tokens", null, replace(unet_source, network="null_tokens", layout="Paint by Example's null vector"))
    elif "null_tokens" not in networks:
        by_example = unet.config.mask_channel == "keep"
        add_fresh(
            "null_tokens", f"fresh{f'; {parts.base} lacks image_encoder, which has the learned one' * by_example}"
        )
    if small is not None:
        add("vae", small[1], imported_from("vae", str(parts.vae), small[0].layout.name))
    elif found["vae"] is not None:
        add_imported("vae", found["vae"])
    for network, advice in (("reference_encoder", "DINOv2"), ("vgg", "VGG-19")):
        detected = found[network]
        if network in networks:
            continue
        if detected is not None:
            add_imported(network, detected)
        elif words is None:
            add_fresh(network, f"fresh, untrained; give {advice} for anything but a try")
    return Start(config, networks, sources, tokenizer=tokenizer)


def _source(part_name: str, detected: Detected, parts: Parts, network: str | None = None) -> Source:
    named = getattr(parts, part_name, None) or parts.base
    note = f"; no {parts.variant} variant there" if lacks_variant(detected.source, named, parts.variant) else ""
    return imported_from(network or part_name, str(detected.source.path), detected.layout.name + note)


def _from_exported(parts: Parts) -> Start:
    """The way back from an exported folder."""
    names = ("vae", "reference_encoder", "hint_encoder", "hed", "text_encoder")
    others = [name for name in names if getattr(parts, name) is not None]
    if others:
        raise WeightsError(f"{parts.base}: is a whole model; {', '.join(others)} cannot be replaced in it")
    if parts.ema:
        raise WeightsError(f"{parts.base}: was exported with one set of weights; leave --ema out")
    if parts.variant is not None:
        raise WeightsError(f"{parts.base}: was exported with one file per network; leave --variant out")
    exported = open_exported(parts.base)
    known = {source.network: source for source in exported.sources}
    networks = dict(exported.networks)
    sources = [
        replace(known.get(name, Source(network=name, origin="")), origin=_through(known.get(name), parts.base))
        for name in networks
    ]
    if parts.vgg is not None:
        detected = part(parts.vgg, "vgg", parts.variant)
        assert detected is not None
        wanted = flax_shapes(DiffuseToChoose(exported.config.model).shapes()["vgg"])
        networks["vgg"] = imported(detected, wanted)
        sources = [*(source for source in sources if source.network != "vgg"), _source("vgg", detected, parts)]
    return Start(exported.config, networks, sources, exported.data)


def _through(source: Source | None, folder: Path) -> str:
    return f"{source.origin}, through {folder}" if source and source.origin else str(folder)
