"""What a file of weights holds, told from its names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable

from dtc_jax.weights import (
    alexnet,
    autoencoder_kl,
    autoencoder_tiny,
    clip,
    controlnet,
    dinov2,
    hed,
    inception,
    lpips,
    unet,
    vgg,
)
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.tensor_source import TensorSource, WeightsError

RECOGNISERS: dict[str, Callable[[TensorSource], list[Detected]]] = {
    "a ControlNet": controlnet.recognise,
    "a U-Net": unet.recognise,
    "an AutoencoderKL": autoencoder_kl.recognise,
    "DINOv2": dinov2.recognise,
    "a VGG": vgg.recognise,
    "an AlexNet": alexnet.recognise,
    "LPIPS": lpips.recognise,
    "TAESD": autoencoder_tiny.recognise,
    "a CLIP": clip.recognise,
    "an InceptionV3": inception.recognise,
    "ControlNetHED": hed.recognise,
}
"""One per network, by what messages call it; a new network adds its own."""

_SD1 = "expected the U-Net of Stable Diffusion 1.x (cross-attention to 768 channels, 1x1 convolutions around it)"


def detect_networks(source: TensorSource) -> list[Detected]:
    """Every network that a source holds; an LDM single file holds several.

    Raises:
        WeightsError: it is of an architecture that the model cannot use, or of none that is known; says what it looks
            like and what was expected.
    """
    foreign = foreign_architecture(source)
    if foreign is not None:
        raise WeightsError(f"{source.path}: {foreign}")
    found = [detected for network in RECOGNISERS for detected in _recognised(network, source)]
    if not found:
        names = source.keys()
        first = ", ".join(f"{name} {list(source.shape(name))}" for name in names[:3])
        raise WeightsError(f"{source.path}: of no network that is known: {len(names)} tensors, the first are {first}")
    return found


def _recognised(network: str, source: TensorSource) -> list[Detected]:
    """What one recogniser finds; sizes of which no such network can be made are an error of the file."""
    try:
        return RECOGNISERS[network](source)
    except WeightsError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{source.path}: looks like {network}, but is none ({reason})") from None


def detect(source: TensorSource, network: str | None = None) -> Detected:
    """The one network that a source holds, or the one that is asked for.

    Args:
        source: Weights.
        network: "unet", "unet_ema", "vae", "dinov2", "vgg", "controlnet", ...; None if there is but one.

    Raises:
        WeightsError: as `detect_networks`; or it holds several, or not the one wanted.
    """
    found = detect_networks(source)
    names = [detected.network for detected in found]
    if network is None and len(found) > 1:
        raise WeightsError(f"{source.path}: holds several networks ({', '.join(names)}); name one")
    for detected in found:
        if network in (None, detected.network):
            return detected
    raise WeightsError(f"{source.path}: holds {', '.join(names)}, expected {network}")


def foreign_architecture(source: TensorSource) -> str | None:
    """What a source is, if it is one of the well-known architectures that do not fit, and what would fit."""
    names = frozenset(source.keys())

    def starts(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if starts("conditioner.embedders.", "add_embedding.", "model.diffusion_model.label_emb.", "label_emb."):
        return f"Stable Diffusion XL; {_SD1}"
    if starts("joint_blocks.", "model.diffusion_model.joint_blocks.") or _has(
        names, "transformer_blocks.0.norm1_context."
    ):
        return f"Stable Diffusion 3; {_SD1}"
    if starts("double_blocks.", "model.diffusion_model.double_blocks.", "single_transformer_blocks."):
        return f"Flux; {_SD1}"
    if starts("cond_stage_model.model.transformer.resblocks.") or _second_generation(source, names):
        return f"Stable Diffusion 2.x; {_SD1}"
    language = ("model.embed_tokens.", "model.layers.0.self_attn.", "lm_head.", "transformer.h.0.", "gpt_neox.")
    if starts(*language) or {"tok_embeddings.weight", "h.0.attn.c_attn.weight"} & names:
        return f"a language model; {_SD1}, an autoencoder, DINOv2, VGG, CLIP or a ControlNet"
    if any(".lora_" in name or name.endswith((".lora_up.weight", ".lora_A.weight")) for name in names):
        return "a LoRA, changes to weights and no weights themselves; merge it into its model and save that"
    if "features.1.running_mean" in names:
        return "a VGG with batch norm; expected torchvision's VGG without (vgg19, vgg16)"
    if names and all("/" in name for name in names):
        return "one network of a model folder, converted already; its folder is what commands take"
    return None


def _has(names: frozenset[str], part: str) -> bool:
    return any(part in name for name in names)


def _second_generation(source: TensorSource, names: frozenset[str]) -> bool:
    """Whether it is a U-Net or ControlNet with dense layers around its attention, or that attends to 1024 channels."""
    for name in names:
        if name.endswith((".attentions.0.proj_in.weight", "input_blocks.1.1.proj_in.weight")) and (
            len(source.shape(name)) == 2
        ):
            return True
        if name.endswith("transformer_blocks.0.attn2.to_k.weight") and source.shape(name)[1:] == (1024,):
            return True
    return False
