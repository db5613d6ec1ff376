"""Single networks in the layouts in which they were published first: LDM's single file, Facebook's DINOv2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from jax.typing import DTypeLike

from dtc_jax.config import AutoencoderKLConfig, DINOv2Config
from dtc_jax.weights import autoencoder_kl, dinov2, unet
from dtc_jax.weights.checkpoint_source import Checkpoint
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.new_folder import refuse_existing
from dtc_jax.weights.tensors import LazyTensor, WeightsError, write_tensors

SingleFile = Literal["ldm", "dinov2"]

_NO_LIMIT = 2**62


def export_single_file(
    checkpoint: Checkpoint, target: Path, kind: SingleFile, dtype: DTypeLike | None = None
) -> list[str]:
    """Write one safetensors file.

    Args:
        checkpoint: What to export.
        target: The new file; ends in .safetensors.
        kind: `ldm`: U-Net and autoencoder as in Stable Diffusion's single files (there is no text encoder to go with
            them); `dinov2`: the reference encoder as Facebook publishes it.
        dtype: Of the weights; None keeps theirs.

    Returns:
        What was written, a line per network.

    Raises:
        WeightsError: the file exists or cannot be written, or the network has no such layout.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: a single file is written as .safetensors; give it that ending")
    refuse_existing(target)
    parts = _ldm(checkpoint, dtype) if kind == "ldm" else _dinov2(checkpoint, dtype)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error})") from None
    tensors = [tensor for _, part in parts for tensor in part]
    write_tensors(target.parent, target.stem, tensors, dtype, _NO_LIMIT)
    return [f"{name}: {len(part)} tensors" for name, part in parts]


def _ldm(checkpoint: Checkpoint, dtype: DTypeLike | None) -> list[tuple[str, list[LazyTensor]]]:
    model = checkpoint.config.model
    if not isinstance(model.vae, AutoencoderKLConfig):
        raise WeightsError(f"{checkpoint.path}: its autoencoder ({model.vae.kind}) has no LDM layout")
    if model.unet.mask_channel == "keep":
        raise WeightsError(
            f"{checkpoint.path}: its U-Net reads masks of 1 = keep, which such a file cannot say; export for diffusers"
        )
    parts = [("unet", unet.LDM, unet.LDM_PREFIX), ("vae", autoencoder_kl.LDM, autoencoder_kl.LDM_PREFIX)]
    return [
        (
            f"{network} ({layout.name})",
            [
                replace(tensor, name=prefix + tensor.name)
                for tensor in export_tensors(layout, checkpoint.networks[network], dtype)
            ],
        )
        for network, layout, prefix in parts
    ]


def _dinov2(checkpoint: Checkpoint, dtype: DTypeLike | None) -> list[tuple[str, list[LazyTensor]]]:
    if not isinstance(checkpoint.config.model.reference_encoder, DINOv2Config):
        raise WeightsError(f"{checkpoint.path}: its reference encoder is CLIP; --format dinov2 is for DINOv2")
    layout = dinov2.FACEBOOK
    return [
        (f"reference_encoder ({layout.name})", export_tensors(layout, checkpoint.networks["reference_encoder"], dtype))
    ]
