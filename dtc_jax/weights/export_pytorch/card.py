"""The README of an exported folder: how it is used, what is in it, and under which licences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax.typing import DTypeLike

from dtc_jax.config import AutoencoderKLConfig, DINOv2Config, ModelConfig, UNetConfig, VGGConfig
from dtc_jax.weights.checkpoint_source import Checkpoint
from dtc_jax.weights.sources import APACHE, LICENCE_OF_DATA, LICENCES, OPEN_RAIL_M, Source

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


def model_card(checkpoint: Checkpoint, sources: Sequence[Source], dtype: DTypeLike | None) -> str:
    """The text of README.md.

    Args:
        checkpoint: What is exported.
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
    licences = _licences(config.model, sources)
    data = LICENCE_OF_DATA.get(config.data.kind)
    reference = config.model.reference_encoder
    return _TEMPLATE.format(
        name=f"Diffuse to Choose: {config.name}",
        license_tag="creativeml-openrail-m" if OPEN_RAIL_M in licences else "other",
        dtype=np.dtype(dtype).name if dtype is not None else "weights in the types of the checkpoint",
        folder="FOLDER",
        size=config.model.image_size,
        steps=config.sampling.num_inference_steps,
        guidance=f"{config.sampling.guidance_scale:g}",
        parts="\n".join(rows),
        channels=config.model.unet.in_channels,
        mask=1 if config.model.unet.mask_channel == "fill" else 0,
        positions=_POSITIONS.format(size=reference.image_size) if reference.position_image_size else "",
        licences=_licence_text(licences, data, config.data.kind, bool(sources)),
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


def _licences(config: ModelConfig, sources: Sequence[Source]) -> dict[str, list[str]]:
    """Licence to networks: from the sources, or else assumed from published sizes."""
    if sources:
        pairs = [(source.licence, source.network) for source in sources if source.licence]
    else:
        pairs = _of_published_sizes(config)
    grouped: dict[str, list[str]] = {}
    for licence, network in pairs:
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


def _licence_text(licences: dict[str, list[str]], data: str | None, data_kind: str, known: bool) -> str:
    lines = [
        f"- {', '.join(networks)}: [{licence}]({LICENCES[licence]})"
        + (" (its restrictions on use go with every copy and every model derived from it)" if "RAIL" in licence else "")
        for licence, networks in licences.items()
    ]
    if data is not None:
        lines.append(f"- training data ({data_kind}): [{data}]({LICENCES[data]}): no commercial use")
    elif data_kind == "procedural":
        lines.append("- training data: generated, no licence")
    elif data_kind == "records":
        lines.append("- training data: a prepared data set of photos, whose licence its metadata.json tells")
    if licences and not known:
        lines.append(
            "\nWhere the weights came from was not recorded: these are licences of published weights of these sizes."
        )
    lines.append("- the code in this folder: Apache-2.0 (dtc-jax)")
    return "\n".join(lines)
