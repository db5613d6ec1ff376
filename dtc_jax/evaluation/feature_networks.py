"""The networks whose features are compared, from published files, and what an image goes through on its way to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from dtc_jax.config import AlexNetConfig, VGGConfig
from dtc_jax.models.clip import CLIPVisionModelWithProjection
from dtc_jax.models.dinov2 import Dinov2Model
from dtc_jax.models.inception import IMAGE_SIZE, InceptionV3
from dtc_jax.models.inputs import normalize_clip, normalize_reference
from dtc_jax.models.lpips import LPIPS
from dtc_jax.weights.clip import VISION_WITH_PROJECTION, vision_shapes
from dtc_jax.weights.detect import detect
from dtc_jax.weights.fingerprint import fingerprint
from dtc_jax.weights.hub import locate
from dtc_jax.weights.mapping import import_params
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.tensors import WeightsError, open_tensors


class FeatureNetwork(NamedTuple):
    """A network that reads images, with what a reader has to know of it."""

    kind: str
    """clip, dinov2, inception or lpips."""
    name: str
    """For people, e.g. "CLIP ViT-B/32"."""
    module: Any
    params: Mapping[str, Any]
    """On the host, float32."""
    image_size: int
    """Height and width that it takes; 0 where any will do."""
    files: tuple[str, ...]
    smallest: int = 1
    """Pixels that an image of any size must have on each side."""

    def describe(self) -> dict[str, Any]:
        """For the protocol: what it is, and the hash of its weights, whatever file they came in."""
        return {"network": self.name, "weights": fingerprint(self.params), "files": list(self.files)}


def _detected(path: str, *networks: str) -> Detected:
    source = open_tensors(locate(path))
    detected = detect(source)
    if detected.network not in networks:
        raise WeightsError(f"{path}: holds {detected.network}, expected {' or '.join(networks)}")
    return detected


def _params(detected: Detected) -> dict[str, Any]:
    return unflatten_params(import_params(detected.layout, detected.source, detected.shapes))


def load_clip(path: str) -> FeatureNetwork:
    """CLIP's image encoder with its projection: transformers' file of the whole CLIP, or of the encoder.

    Raises:
        WeightsError: no such file, or another network.
    """
    detected = _detected(path, "clip", "clip_vision")
    if detected.network == "clip":
        config = detected.config.vision
        detected = replace(
            detected, config=config, layout=VISION_WITH_PROJECTION, shapes=vision_shapes(config, with_projection=True)
        )
    config = detected.config
    if not any(path.startswith("visual_projection/") for path in detected.shapes):
        raise WeightsError(
            f"{path}: CLIP's image encoder without its projection, whose space the CLIP score compares in"
        )
    size = {768: "ViT-B", 1024: "ViT-L"}.get(config.hidden_size, f"of width {config.hidden_size}")
    module = CLIPVisionModelWithProjection(config)
    return FeatureNetwork(
        "clip", f"CLIP {size}/{config.patch_size}", module, _params(detected), config.image_size, (path,)
    )


def load_dinov2(path: str) -> FeatureNetwork:
    """DINOv2 in Facebook's or transformers' layout.

    Raises:
        WeightsError: no such file, or another network.
    """
    detected = _detected(path, "dinov2")
    config = detected.config
    size = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1536: "ViT-g"}.get(
        config.hidden_size, f"of width {config.hidden_size}"
    )
    name = f"DINOv2 {size}/{config.patch_size}"
    return FeatureNetwork("dinov2", name, Dinov2Model(config), _params(detected), config.image_size, (path,))


def load_inception(path: str) -> FeatureNetwork:
    """FID's Inception as pytorch-fid publishes it.

    Raises:
        WeightsError: no such file, or another network.
    """
    detected = _detected(path, "inception")
    # Images come resized: those of one set need not have one size.
    module = InceptionV3(replace(detected.config, resize_input=False))
    return FeatureNetwork("inception", "FID's InceptionV3", module, _params(detected), IMAGE_SIZE, (path,))


def load_lpips(paths: Sequence[str]) -> FeatureNetwork:
    """LPIPS: its whole state in one file, or its heads and torchvision's VGG-16 or AlexNet in two, in any order.

    Raises:
        WeightsError: no such file, or other networks.
    """
    if len(paths) > 2:
        raise WeightsError(f"LPIPS comes in one file or two (heads, and VGG-16 or AlexNet), not {len(paths)}")
    found = {one.network: one for one in (_detected(p, "lpips", "lpips_heads", "vgg", "alexnet") for p in paths)}
    backbones = [one for name, one in found.items() if name in ("vgg", "alexnet")]
    if set(found) == {"lpips"}:
        backbone: VGGConfig | AlexNetConfig = found["lpips"].config
        params = _params(found["lpips"])
    elif "lpips_heads" in found and backbones:
        backbone = backbones[0].config
        if isinstance(backbone, VGGConfig) and backbone.convolutions_per_block == (2, 2, 4, 4, 4):
            # Of the same channels as VGG-16, so that the heads fit; the figure would be another one.
            raise WeightsError(f"{backbones[0].source.path}: is VGG-19; LPIPS reads VGG-16 (torchvision's vgg16)")
        channels = backbone.block_channels if isinstance(backbone, VGGConfig) else backbone.channels
        if channels != found["lpips_heads"].config:
            raise WeightsError(
                f"{' and '.join(paths)}: heads for {list(found['lpips_heads'].config)} channels, and a network with "
                f"{list(channels)}; LPIPS's vgg.pth goes with VGG-16, alex.pth with AlexNet"
            )
        params = {"net": _params(backbones[0]), **_params(found["lpips_heads"])}
    else:
        lacking = "its heads (LPIPS's vgg.pth or alex.pth)" if backbones else "the network that its heads read"
        raise WeightsError(f"{' and '.join(paths)}: not a whole LPIPS; add {lacking}")
    name = "LPIPS with VGG" if isinstance(backbone, VGGConfig) else "LPIPS with AlexNet"
    module = LPIPS(backbone)
    return FeatureNetwork("lpips", name, module, params, 0, tuple(paths), module.smallest_image)


# ------------------------------------------------------------------------------------------------- images to features


@dataclass(frozen=True)
class Features:
    """A network's features of a batch of images, as `BatchedFunction` takes it."""

    kind: str
    module: Any

    def __call__(self, params: Mapping[str, Any], images: Array) -> Float[Array, "b d"]:
        variables = {"params": params}
        if self.kind == "clip":
            features: Array = self.module.apply(variables, normalize_clip(images))
        elif self.kind == "dinov2":
            features = self.module.apply(variables, normalize_reference(images))[:, 0]
        else:
            features = self.module.apply(variables, images)
        return features.astype(jnp.float32)


def inception_input(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "299 299 3"]:
    """pytorch-fid's: [0, 1], bilinear to 299 x 299 without antialiasing, aspect not kept."""
    unit = image.astype(np.float32) / 255
    return np.asarray(cv2.resize(unit, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR))


def resized(
    image: UInt8[np.ndarray, "h w 3"], size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> UInt8[np.ndarray, "size size 3"]:
    """Pillow's resizing to a square, with antialiasing, aspect not kept."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size, size), resample))


def cosine(a: Float[np.ndarray, "d"], b: Float[np.ndarray, "d"]) -> float:
    """Cosine of the angle between two vectors."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
