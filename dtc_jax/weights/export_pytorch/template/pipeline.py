"""Diffuse to Choose (Seyfioglu et al., 2024, arXiv:2401.13795): paints a product, given one photo, into a scene.

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
image = pipe(scene, mask, reference).images[0]
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

# diffusers copies the files that are named here, but not those that these name: all are listed.
from .dtc_backdrop import whiten_backdrop  # noqa: F401
from .dtc_images import read_box, read_mask, read_photo, read_reference
from .dtc_metadata import Metadata
from .dtc_modes import to_srgb  # noqa: F401
from .dtc_outline import outline_in_box  # noqa: F401
from .dtc_preprocessing import DEFAULT_CONTEXT, Prepared, prepare, put_back
from .dtc_resize import resize_area  # noqa: F401
from .dtc_sampler import DDIMSteps, guide, is_guided, modulated

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DTCPipeline(DiffusionPipeline):
    """U-Net, autoencoder and image encoder are diffusers' and transformers' own; the rest is in this folder.

    `hint_adapter`, `hint_encoder` and `fusion` are None in a model without a hint.
    """

    model_cpu_offload_seq = (
        "image_encoder->reference_projection->null_tokens->hint_adapter->hint_encoder->fusion->unet->vae"
    )
    _optional_components = ["hint_adapter", "hint_encoder", "fusion"]  # noqa: RUF012

    def __init__(
        self,
        unet,
        vae,
        image_encoder,
        reference_projection,
        null_tokens,
        scheduler,
        hint_adapter,
        hint_encoder,
        fusion,
        image_size: int = 512,
        hint_fit: str = "contain",
        hint_region: str = "largest_rectangle",
        hint_trim: bool = True,
        mask_channel: str = "fill",
        num_inference_steps: int = 40,
        guidance_scale: float = 5.0,
        unconditional: str = "tokens",
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
        guidance_interval: list[float] | None = None,
        box_outline: str = "model",
    ):
        """The numbers are what the model was trained for, and the defaults of `__call__`."""
        super().__init__()
        self.register_modules(
            unet=unet,
            vae=vae,
            image_encoder=image_encoder,
            reference_projection=reference_projection,
            null_tokens=null_tokens,
            scheduler=scheduler,
            hint_adapter=hint_adapter,
            hint_encoder=hint_encoder,
            fusion=fusion,
        )
        self.register_to_config(
            image_size=image_size,
            hint_fit=hint_fit,
            hint_region=hint_region,
            hint_trim=hint_trim,
            mask_channel=mask_channel,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            unconditional=unconditional,
            eta=eta,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            box_outline=box_outline,
        )

    @torch.no_grad()
    def __call__(
        self,
        scene,
        mask,
        reference,
        *,
        box=None,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        unconditional: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        box_outline: str | None = None,
        context: float = DEFAULT_CONTEXT,
        feather: int = 0,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Paint the reference's product into the masked region of the scene.

        Args:
            scene: Pillow image (or path) of any size.
            mask: Of the scene's size, white (>= 128) = fill; None with `box`.
            reference: Photo of the product, best on white or transparent.
            box: x0, y0, x1, y1 in pixels of the scene, in place of a mask.
            num_images: How many different results.
            num_inference_steps: Solver steps; None (here and below) takes the model's default.
            guidance_scale: How much the reference counts; 1 turns guidance off, which is twice as fast.
            unconditional: What guidance compares with: without the reference's "tokens", or without "both" tokens and
                hint.
            generator: Of the noise; one, or one per image.
            latents: The noise itself [num_images, c, h, w], in place of `generator`.
            box_outline: Who draws the product's outline in a mask that is a box: the "model", which paints all of the
                box, or a "reference" on white, whose own is stretched into the box.
            context: How much of the scene round the mask the model sees.
            feather: Width in pixels of a blend along the mask's edge, inside it.
            output_type: "pil"; "np": uint8 arrays of the scene's size; "window": the model's own square, float32 in
                [0, 1], before it is put back.

        Returns:
            `images`: each of the scene's size and equal to it outside the mask. Pillow images have the scene's ICC
            profile (if it is one of RGB values) and its EXIF, turned upright, in `info`. Pillow writes EXIF when it is
            told to: `image.save("result.png", exif=image.info.get("exif"))`.
        """
        prepared = self.prepare(scene, mask, reference, box=box, context=context, box_outline=box_outline)
        windows = self.generate(
            prepared,
            num_images=num_images,
            num_inference_steps=num_inference_steps or self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale if guidance_scale is None else guidance_scale,
            unconditional=unconditional or self.config.unconditional,
            generator=generator,
            latents=latents,
        )
        self.maybe_free_model_hooks()
        if output_type == "window":
            return ImagePipelineOutput(images=windows)
        results = [put_back(prepared, window, feather) for window in windows]
        if output_type == "pil":
            results = [to_pil(result, prepared.metadata) for result in results]
        return ImagePipelineOutput(images=results)

    def prepare(
        self, scene, mask, reference, *, box=None, context: float = DEFAULT_CONTEXT, box_outline: str | None = None
    ) -> Prepared:
        """Read the images, cut the window, stitch the hint, frame the reference."""
        photo, metadata = read_photo(scene)
        if (mask is None) == (box is None):
            raise ValueError("mask and box: give one of the two")
        region = read_box(box, photo.shape[:2]) if mask is None else read_mask(mask, photo.shape[:2])
        prepared = prepare(
            photo,
            region,
            read_reference(reference),
            size=self.config.image_size,
            reference_size=self.image_encoder.config.image_size,
            fit=self.config.hint_fit,
            region=self.config.hint_region,
            trim=self.config.hint_trim,
            context=context,
            box_outline=self.config.box_outline if box_outline is None else box_outline,
        )
        return replace(prepared, metadata=metadata)

    def generate(
        self, prepared, *, num_images, num_inference_steps, guidance_scale, unconditional, generator=None, latents=None
    ) -> np.ndarray:
        """The model's windows [num_images, size, size, 3], float32 in [0, 1]."""
        device, dtype = self._execution_device, self.unet.dtype
        scene = _to_tensor(prepared.scene, device) / 127.5 - 1
        mask = _to_tensor(prepared.mask[..., None], device)
        hint = _to_tensor(prepared.hint, device) / 255
        masked_latents = self.encode_image(scene * (1 - mask)).to(dtype)
        factor = scene.shape[-1] // masked_latents.shape[-1]
        mask = mask[:, :, ::factor, ::factor].to(dtype)
        if self.config.mask_channel == "keep":
            mask = 1 - mask
        tokens = self.encode_reference(_to_tensor(prepared.reference, device)).to(dtype)
        if latents is None:
            shape = (num_images, *masked_latents.shape[1:])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)

        guided = guidance_scale != 1
        hinted = 2 if guided and unconditional == "tokens" else 1
        tokens = tokens.expand(num_images, -1, -1)
        if guided:
            tokens = torch.cat([tokens, self.null_tokens(tokens)])
        conditions = torch.cat([mask, masked_latents], 1)
        hint_inputs = None
        if self.hint_encoder is not None:
            hint_inputs = self.hint_adapter(hint.to(dtype)) + masked_latents
            hint_inputs = hint_inputs.expand(hinted * num_images, -1, -1, -1)

        is_ddim = isinstance(self.scheduler, DDIMScheduler)
        if is_ddim:
            ddim = DDIMSteps(self.scheduler, num_inference_steps, device, self.config.eta)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            latents = latents * self.scheduler.init_noise_sigma
        modulations = {}  # by the number of branches
        for index, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            both = guided and is_guided(self.scheduler, timestep, self.config.guidance_interval)
            branches = 2 if both else 1
            batch = branches * num_images
            if hint_inputs is not None and (branches not in modulations or self.hint_encoder.config.time == "timestep"):
                modulations[branches] = self.modulations(hint_inputs[:batch], timestep, tokens[:batch], batch)
            x = latents if is_ddim else self.scheduler.scale_model_input(latents, timestep)
            inputs = torch.cat([x.to(dtype).repeat(branches, 1, 1, 1), conditions.expand(batch, -1, -1, -1)], 1)
            with modulated(self.unet, modulations.get(branches)):
                output = self.unet(inputs, timestep, encoder_hidden_states=tokens[:batch]).sample.float()
            if both:
                output = guide(*output.chunk(2), guidance_scale, self.config.guidance_rescale)
            if is_ddim:
                latents = ddim.step(index, output, latents, generator)
            else:
                latents = self.scheduler.step(output, timestep, latents).prev_sample
        images = (self.decode_latents(latents) + 1) / 2
        return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    def modulations(self, hint_inputs, timestep, tokens, batch):
        """(gamma, beta) for every skip and the middle; samples beyond the hinted ones get zeros, the identity."""
        hinted = hint_inputs.shape[0]
        features = self.hint_encoder(hint_inputs, timestep.expand(hinted), tokens[:hinted])

        def padded(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x.new_zeros(batch - hinted, *x.shape[1:])])

        return [(padded(gamma), padded(beta)) for gamma, beta in self.fusion(features)]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents (the posterior's mode) of images in [-1, 1]."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Images, float32, nominally in [-1, 1]."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()

    def encode_reference(self, reference: torch.Tensor) -> torch.Tensor:
        """Tokens [b, l, d] for the cross-attention, from 0..255 [b, 3, r, r]."""
        mean, std = (reference.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = ((reference / 255 - mean) / std).to(self.image_encoder.dtype)
        features = self.image_encoder(pixels).last_hidden_state
        return self.reference_projection(features.to(self.reference_projection.dtype))


def _to_tensor(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [h, w, c] as float32 [1, c, h, w]."""
    return torch.from_numpy(image.copy()).to(device).float().permute(2, 0, 1)[None]


def to_pil(result: np.ndarray, metadata: Metadata) -> Image.Image:
    """A Pillow image that has the metadata in `info`."""
    image = Image.fromarray(result)
    known = {"icc_profile": metadata.icc_profile, "exif": metadata.exif}
    image.info.update({name: value for name, value in known.items() if value is not None})
    return image
