"""What each network becomes in an exported folder: its folder, its class, its configuration, the code it brings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dtc_jax.config import (
    AutoencoderConfig,
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    DiffusionConfig,
    DINOv2Config,
    ExperimentConfig,
    ModelConfig,
    SamplingConfig,
)
from dtc_jax.models.unet import feature_channels
from dtc_jax.weights import autoencoder_kl, autoencoder_tiny, diffuse_to_choose, dinov2, unet, vgg
from dtc_jax.weights.layouts import Layout, rule_entries
from dtc_jax.weights.tensor_source import WeightsError
from dtc_jax.weights.unet_config import to_diffusers_config

DIFFUSERS_VERSION = "0.32.0"
"""The oldest release that the folder's code is written for."""

PIPELINE_CLASS = "DTCPipeline"
"""The pipeline's class, in pipeline.py."""

PATCH_AUTOENCODER = Layout("Diffuse to Choose's PatchAutoencoder", rule_entries)


@dataclass(frozen=True, kw_only=True)
class ExportedNetwork:
    """One network and the folder that it gets.

    Attributes:
        network: Key of the model's parameters.
        folder: Name of the folder, which is also the pipeline's component.
        layout: Names of its tensors.
        library: Where its class is: "diffusers", "transformers", or the module in its folder; "" for no component.
        class_name: Its class.
        config: config.json without what says the class.
        weights_name: File name of the weights without ending.
    """

    network: str
    folder: str
    layout: Layout
    library: str
    class_name: str
    config: dict[str, Any]
    weights_name: str = "diffusion_pytorch_model"

    @property
    def code(self) -> str | None:
        """The template that goes into the folder, if there is one."""
        return f"{self.library}.py" if self.library not in ("diffusers", "transformers", "") else None

    def config_json(self) -> dict[str, Any]:
        """config.json as its library wants it."""
        if self.library == "transformers":
            return {"architectures": [self.class_name], "model_type": "dinov2", **self.config}
        return {"_class_name": self.class_name, "_diffusers_version": DIFFUSERS_VERSION, **self.config}


def exported_networks(config: ModelConfig) -> list[ExportedNetwork]:
    """All networks of a model, in the order in which they are written.

    Raises:
        WeightsError: the folder's code has no such variant.
    """
    reference = exported_encoder(config)
    at_size = dinov2.to_transformers_config(reference) | {"image_size": reference.image_size}
    width = config.unet.cross_attention_dim
    networks = [
        exported_unet(config),
        exported_autoencoder(config.vae),
        ExportedNetwork(
            network="reference_encoder",
            folder="image_encoder",
            layout=dinov2.TRANSFORMERS,
            library="transformers",
            class_name="Dinov2Model",
            config=at_size,
            weights_name="model",
        ),
        _own("reference_projection", "ReferenceProjection", in_features=reference.hidden_size, out_features=width),
        _own("null_tokens", "NullTokens", features=width),
    ]
    if config.hint.kind != "none":
        networks += _hint_networks(config)
    return networks


def exported_unet(config: ModelConfig) -> ExportedNetwork:
    """The U-Net, which diffusers has."""
    return ExportedNetwork(
        network="unet",
        folder="unet",
        layout=unet.DIFFUSERS,
        library="diffusers",
        class_name="UNet2DConditionModel",
        config=to_diffusers_config(config.unet) | {"sample_size": config.latent_size},
    )


def exported_encoder(config: ModelConfig) -> DINOv2Config:
    """The reference encoder of a model that the folder's code can run.

    Raises:
        WeightsError: a variant of which there is no such code.
    """
    reasons = {
        f"model.fusion.kind = {config.fusion.kind}": config.fusion.kind == "cross_attention",
        f"model.hint.kind = {config.hint.kind}": config.hint.kind not in ("reference", "none"),
        "CLIP as the reference encoder": not isinstance(config.reference_encoder, DINOv2Config),
        f"model.reference.tokens = {config.reference.tokens}": config.reference.tokens != "all",
        f"model.reference.projection = {config.reference.projection}": config.reference.projection != "dense",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise WeightsError(
            f"{reason}: has no PyTorch pipeline; sample it here, or export with dtc_jax.inference.export"
        )
    assert isinstance(config.reference_encoder, DINOv2Config)
    return config.reference_encoder


def perceptual_network(config: ModelConfig) -> ExportedNetwork:
    """VGG, which sampling does not need: tensors alone, under torchvision's names."""
    return ExportedNetwork(
        network="vgg",
        folder="vgg",
        layout=vgg.TORCHVISION,
        library="",
        class_name="VGG",
        config={},
        weights_name="model",
    )


def _own(network: str, class_name: str, **config: Any) -> ExportedNetwork:
    layout = diffuse_to_choose.OWN_PARTS[network]
    return ExportedNetwork(
        network=network, folder=network, layout=layout, library=network, class_name=class_name, config=config
    )


def _hint_networks(config: ModelConfig) -> list[ExportedNetwork]:
    sizes = to_diffusers_config(config.unet)
    return [
        _own(
            "hint_adapter",
            "HintAdapter",
            channels=[*config.hint.adapter_channels, config.vae.latent_channels],
            halvings=int(math.log2(config.vae.factor)),
        ),
        _own(
            "hint_encoder",
            "HintEncoder",
            in_channels=config.vae.latent_channels,
            block_out_channels=sizes["block_out_channels"],
            down_block_types=sizes["down_block_types"],
            layers_per_block=sizes["layers_per_block"],
            num_attention_heads=config.unet.num_attention_heads,
            cross_attention_dim=sizes["cross_attention_dim"],
            norm_num_groups=sizes["norm_num_groups"],
            time=config.hint.time,
        ),
        _own(
            "fusion",
            "Fusion",
            channels=list(feature_channels(config.unet)),
            pooled=config.fusion.pooled,
            kind=config.fusion.kind,
        ),
    ]


def exported_autoencoder(config: AutoencoderConfig) -> ExportedNetwork:
    """An autoencoder of any kind."""
    if isinstance(config, AutoencoderKLConfig):
        layout, library, name = autoencoder_kl.DIFFUSERS, "diffusers", "AutoencoderKL"
        sizes = autoencoder_kl.to_diffusers_config(config)
    elif isinstance(config, AutoencoderTinyConfig):
        layout, library, name = autoencoder_tiny.DIFFUSERS, "diffusers", "AutoencoderTiny"
        levels = len(config.num_encoder_blocks)
        sizes = {
            "in_channels": config.in_channels,
            "out_channels": config.in_channels,
            "latent_channels": config.latent_channels,
            "encoder_block_out_channels": [config.channels] * levels,
            "decoder_block_out_channels": [config.channels] * levels,
            "num_encoder_blocks": list(config.num_encoder_blocks),
            "num_decoder_blocks": list(config.num_decoder_blocks),
            "scaling_factor": config.scaling_factor,
        }
    else:
        layout, library, name = PATCH_AUTOENCODER, "patch_autoencoder", "PatchAutoencoder"
        sizes = {
            "in_channels": config.in_channels,
            "latent_channels": config.latent_channels,
            "patch_size": config.patch_size,
            "hidden_channels": config.hidden_channels,
            "num_blocks": config.num_blocks,
            "scaling_factor": config.scaling_factor,
        }
    return ExportedNetwork(network="vae", folder="vae", layout=layout, library=library, class_name=name, config=sizes)


def scheduler_config(diffusion: DiffusionConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """diffusers' arguments of the scheduler that is the model's solver, its class among them."""
    return {
        "_class_name": SCHEDULERS[sampling.solver],
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": diffusion.num_train_timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": "squaredcos_cap_v2" if diffusion.beta_schedule == "cosine" else diffusion.beta_schedule,
        "prediction_type": diffusion.prediction_type,
        "timestep_spacing": sampling.timestep_spacing,
        "steps_offset": sampling.steps_offset,
        **(_DDIM if sampling.solver == "ddim" else _DPM_SOLVER),
    }


SCHEDULERS = {"ddim": "DDIMScheduler", "dpmsolver++": "DPMSolverMultistepScheduler"}
_DDIM = {"clip_sample": False, "set_alpha_to_one": False}
_DPM_SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}


def model_index(config: ExperimentConfig, networks: Sequence[ExportedNetwork]) -> dict[str, Any]:
    """model_index.json: the pipeline's class, its components, and the numbers that it is made with."""
    components: dict[str, Any] = {net.folder: [net.library, net.class_name] for net in networks if net.library}
    for optional in ("hint_adapter", "hint_encoder", "fusion"):
        components.setdefault(optional, [None, None])
    model, sampling = config.model, config.sampling
    return {
        "_class_name": ["pipeline", PIPELINE_CLASS],
        "_diffusers_version": DIFFUSERS_VERSION,
        **components,
        "scheduler": ["diffusers", SCHEDULERS[sampling.solver]],
        "image_size": model.image_size,
        "hint_fit": model.hint.fit,
        "hint_region": model.hint.region,
        "hint_trim": model.hint.trim,
        "mask_channel": model.unet.mask_channel,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "unconditional": sampling.unconditional,
        "eta": sampling.eta,
        "guidance_rescale": sampling.guidance_rescale,
        "guidance_interval": None if sampling.guidance_interval is None else list(sampling.guidance_interval),
        "box_outline": sampling.box_outline,
    }
