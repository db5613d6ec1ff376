"""The README of an exported folder: how it is used, what is in it, and under which licences."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jax.typing import DTypeLike

from dtc_jax.config import AutoencoderKLConfig, DINOv2Config, ModelConfig, UNetConfig, VGGConfig
from dtc_jax.weights.checkpoint_source import Checkpoint
from dtc_jax.weights.export_pytorch.networks import exported_encoder
from dtc_jax.weights.sources import APACHE, LICENCES, OPEN_RAIL_M, Source
from dtc_jax.weights.training_data import PROCEDURAL, TrainingData

_TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: image-to-image
license: {license_tag}
tags: [diffuse-to-choose, inpainting, virtual-try-on]
---

# {name}

Diffuse to Choose ([Seyfioglu et al., 2024](https://arxiv.org/abs/2401.13795)): paints a product, given one photo of it,
into a masked region of a scene. Trained with dtc-jax and exported for PyTorch ({dtype}).

```python
import torch
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)
scene, mask, reference = (Image.open(name) for name in ("scene.jpg", "mask.png", "product.jpg"))
image = pipe(scene, mask, reference, generator=torch.Generator().manual_seed(0)).images[0]
```

White in the mask is what gets painted; nothing outside it changes. Scene and mask may have any size; the model works at
{size} pixels on the part round the mask. The photo of the product is best on white or transparent. Defaults:
{steps} steps, guidance {guidance}.

Needs torch, diffusers and transformers, nothing else. `trust_remote_code=True` runs the code in this folder:
pipeline.py, the files beside it, and one file in each folder of a part that diffusers does not have.

## Parts

| part | class | parameters | from |
|---|---|---|---|
{parts}

`UNet2DConditionModel`, `AutoencoderKL` and `Dinov2Model` load by themselves, too:
`UNet2DConditionModel.from_pretrained("{folder}", subfolder="unet")`. The U-Net reads {channels} channels: noisy
latents, mask ({mask} = fill), masked latents. By itself it knows nothing of the hint.{positions}

dtc_jax.json is the configuration that it was trained with.

## Licences

{licences}
"""

_POSITIONS = """
`image_encoder` has its position table at {size} pixels, made in DINOv2's own way; transformers would interpolate the
published table differently. The published one is in reference_positions.safetensors."""


def model_card(
    checkpoint: Checkpoint, exported: Collection[str], sources: Sequence[Source], dtype: DTypeLike | None
) -> str:
    """The text of README.md.

    Args:
        checkpoint: What it is made of.
        exported: The networks that are exported.
        sources: Where its networks came from; empty if that is not known, which the card then says.
        dtype: Of the weights; None: as they were.
    """
    config = checkpoint.config
    names = {"reference_encoder": "image_encoder"}
    origin = {source.network: source.origin for source in sources}
    rows = [
        f"| {names.get(name, name)} | {_CLASSES[name]} | {_count(checkpoint, name):,} | {origin.get(name, '')} |"
        for name in checkpoint.networks
        if name != "vgg"
    ]
    licences = _licences(config.model, sources, exported)
    data = checkpoint.data
    free = data is None or not data.non_commercial
    reference = exported_encoder(config.model)
    return _TEMPLATE.format(
        name=f"Diffuse to Choose: {config.name}",
        license_tag="creativeml-openrail-m" if OPEN_RAIL_M in licences and free else "other",
        dtype=np.dtype(dtype).name if dtype is not None else "weights in the types of the checkpoint",
        folder="FOLDER",
        size=config.model.image_size,
        steps=config.sampling.num_inference_steps,
        guidance=f"{config.sampling.guidance_scale:g}",
        parts="\n".join(rows),
        channels=config.model.unet.in_channels,
        mask=1 if config.model.unet.mask_channel == "fill" else 0,
        positions=_POSITIONS.format(size=reference.image_size) if reference.position_image_size else "",
        licences=licence_text(licences, data, bool(sources)),
    )


_CLASSES = {
    "unet": "diffusers `UNet2DConditionModel`",
    "vae": "autoencoder",
    "reference_encoder": "transformers `Dinov2Model`",
    "reference_projection": "`ReferenceProjection`",
    "null_tokens": "`NullTokens`",
    "hint_adapter": "`HintAdapter`",
    "hint_encoder": "`HintEncoder`",
    "fusion": "`Fusion`",
}


def _count(checkpoint: Checkpoint, name: str) -> int:
    source = checkpoint.networks[name]
    return sum(math.prod(source.shape(tensor)) for tensor in source.keys())  # noqa: SIM118


def _licences(config: ModelConfig, sources: Sequence[Source], exported: Collection[str]) -> dict[str, list[str]]:
    """Licence to networks: from the sources, or else assumed from published sizes."""
    if sources:
        pairs = [(source.licence, source.network) for source in sources if source.licence]
    else:
        pairs = _of_published_sizes(config)
    grouped: dict[str, list[str]] = {}
    for licence, network in pairs:
        if network not in exported:
            continue
        grouped.setdefault(licence, []).append(network)
    return grouped


def _of_published_sizes(config: ModelConfig) -> list[tuple[str, str]]:
    """Networks of the sizes in which weights are published, which is where they will have started."""
    pairs = []
    if config.unet.block_out_channels == UNetConfig().block_out_channels:
        pairs += [(OPEN_RAIL_M, "unet"), (OPEN_RAIL_M, "hint_encoder")]
    if isinstance(config.vae, AutoencoderKLConfig) and config.vae == AutoencoderKLConfig():
        pairs.append((OPEN_RAIL_M, "vae"))
    if config.reference_encoder.hidden_size in (384, 768, 1024, DINOv2Config().hidden_size):
        pairs.append((APACHE, "reference_encoder"))
    if config.vgg == VGGConfig():
        pairs.append(("BSD-3-Clause", "vgg"))
    return pairs


def licence_text(licences: Mapping[str, Sequence[str]], data: TrainingData | None, known: bool) -> str:
    """The card's list of licences.

    Args:
        licences: Licence to networks.
        data: What the model was trained on; None if nothing was trained.
        known: Whether it was recorded where the networks came from.
    """
    lines = [
        f"- {', '.join(networks)}: {_linked(licence)}"
        + (" (its restrictions on use go with every copy and every model derived from it)" if "RAIL" in licence else "")
        for licence, networks in licences.items()
    ]
    lines.append(f"- {_of_data(data)}")
    lines.append("- the code in this folder: Apache-2.0 (dtc-jax)")
    if licences:
        why = (
            "These are licences of the weights that are usually published in the layouts that the networks came in"
            if known
            else "Where the weights came from was not recorded: these are licences of published weights of these sizes"
        )
        lines.append(f"\n{why}; those of your files count.")
    return "\n".join(lines)


def _linked(licence: str) -> str:
    """The licence's words, with a link where it is a well-known one; others are printed as they are."""
    name = next((name for name in LICENCES if licence == name or licence.startswith(f"{name}:")), "")
    return f"[{name}]({LICENCES[name]}){licence.removeprefix(name)}" if name else licence


def _of_data(data: TrainingData | None) -> str:
    if data is None:
        return "training data: none; the weights are as they were imported, nothing was trained here"
    if data.name == PROCEDURAL:
        return "training data: generated, no licence"
    if data.name == "records":
        return "training data: a prepared data set of photos, whose licence its metadata.json tells"
    what = _linked(data.licence) if data.licence else "a licence was not recorded"
    return f"training data ({data.name}): {what}" + (": no commercial use" if data.non_commercial else "")
