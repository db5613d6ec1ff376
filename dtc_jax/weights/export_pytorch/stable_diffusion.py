"""A model of one product (DreamPaint) as the folder of diffusers' own StableDiffusionInpaintPipeline.

It is one: a Stable Diffusion inpainting model whose U-Net knows one word more. The folder has no code of ours; there it
is prompted in words, with the prompt that it was tuned with or with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from dtc_jax.config import AutoencoderKLConfig, CLIPTextConfig, ModelConfig
from dtc_jax.data.tokenizer import END, START
from dtc_jax.weights import clip
from dtc_jax.weights.checkpoint_source import Checkpoint
from dtc_jax.weights.export_pytorch.folder import MAX_SHARD_BYTES, write_json, write_network
from dtc_jax.weights.export_pytorch.networks import (
    DIFFUSERS_VERSION,
    SCHEDULERS,
    ExportedNetwork,
    exported_autoencoder,
    exported_unet,
    scheduler_config,
)
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.new_folder import new_folder
from dtc_jax.weights.prompts import TOKENIZER, find_tokenizer
from dtc_jax.weights.sources import Source, write_sources
from dtc_jax.weights.tensor_source import WeightsError
from dtc_jax.weights.training_data import DATA_FILE

PIPELINE_CLASS = "StableDiffusionInpaintPipeline"

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: creativeml-openrail-m
tags: [dreampaint, dreambooth, inpainting]
---

# DreamPaint: {prompt}

Stable Diffusion's inpainting model, tuned on a few photos of one product (DreamPaint, [Seyfioglu et al.,
2023](https://arxiv.org/abs/2305.01257)) with dtc-jax and exported for PyTorch. The product is "{prompt}"; its class is
"{class_prompt}".

```python
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

pipe = StableDiffusionInpaintPipeline.from_pretrained("FOLDER")
scene, mask = (Image.open(name).resize(({size}, {size})) for name in ("scene.jpg", "mask.png"))
image = pipe(prompt="{prompt}", image=scene, mask_image=mask, guidance_scale={guidance:g}).images[0]
```

White in the mask is what gets painted. Weights that began as Stable Diffusion's have its licence, [CreativeML
OpenRAIL-M](https://huggingface.co/spaces/CompVis/stable-diffusion-license), whose restrictions on use go with every
copy; the licence of the model that this one began as counts. The photos' rights are their owner's.
"""


def export_inpainting(
    checkpoint: Checkpoint,
    target: Path,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    sources: Sequence[Source] = (),
) -> Path:
    """Write a folder that diffusers loads without code of ours.

    Args:
        checkpoint: A model whose condition is a prompt.
        target: The new folder.
        dtype: Of the weights; None keeps theirs.
        max_shard_bytes: Files larger than this are split into shards with an index.
        sources: Where the networks came from, if the checkpoint itself does not say.

    Returns:
        The folder.

    Raises:
        WeightsError: the folder exists or cannot be written, or diffusers has no such autoencoder or mask in it.
        ConfigError: no tokenizer beside the checkpoint.
    """
    config = checkpoint.config
    networks = inpainting_networks(config.model)
    tokenizer = find_tokenizer(config.model, [checkpoint.path])
    with new_folder(target) as folder:
        for network in networks:
            tensors = export_tensors(network.layout, checkpoint.networks[network.network], dtype)
            write_network(folder / network.folder, network, tensors, dtype, max_shard_bytes)
        (folder / TOKENIZER).mkdir()
        for name, text in tokenizer.files.items():
            (folder / TOKENIZER / name).write_text(text, encoding="utf-8")
        write_json(folder / TOKENIZER / "tokenizer_config.json", _tokenizer_config(config.model))
        write_json(folder / TOKENIZER / "special_tokens_map.json", _MARKS)
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(config.diffusion, config.sampling))
        components: dict[str, Any] = {net.folder: [net.library, net.class_name] for net in networks}
        components |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
        index = {
            "_class_name": PIPELINE_CLASS,
            "_diffusers_version": DIFFUSERS_VERSION,
            **components,
            TOKENIZER: ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", SCHEDULERS[config.sampling.solver]],
            "requires_safety_checker": False,
        }
        write_json(folder / "model_index.json", index)
        known = list(checkpoint.sources or sources)
        if known:
            write_sources(folder, known)
        if checkpoint.data is not None:
            (folder / DATA_FILE).write_text(checkpoint.data.to_json())
        data = config.data
        card = _CARD.format(
            prompt=data.prompt,
            class_prompt=data.class_prompt,
            size=config.model.image_size,
            guidance=config.sampling.guidance_scale,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def inpainting_networks(model: ModelConfig) -> list[ExportedNetwork]:
    """U-Net, autoencoder and text encoder, as diffusers and transformers have them.

    Raises:
        WeightsError: they do not have this autoencoder, or this meaning of the mask.
    """
    if not isinstance(model.vae, AutoencoderKLConfig) or model.unet.mask_channel != "fill":
        what = "a mask in which 1 means keep" if model.unet.mask_channel != "fill" else type(model.vae).__name__
        raise WeightsError(
            f"{what}: {PIPELINE_CLASS} has no such thing; sample it here, or export with dtc_jax.inference.export"
        )
    encoder = model.reference_encoder
    assert isinstance(encoder, CLIPTextConfig)
    text = ExportedNetwork(
        network="reference_encoder",
        folder="text_encoder",
        layout=clip.text_layout(),
        library="transformers",
        class_name="CLIPTextModel",
        config=clip.to_transformers_text_config(encoder),
        weights_name="model",
    )
    return [exported_unet(model), exported_autoencoder(model.vae), text]


_MARKS = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}


def _tokenizer_config(model: ModelConfig) -> dict[str, Any]:
    return {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.num_reference_tokens, **_MARKS}
