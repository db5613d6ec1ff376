"""What is measured on a set of results, in which units, and how, in words."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One figure."""

    label: str
    higher_is_better: bool
    digits: int
    protocol: str
    network: str | None = None
    """Kind of the feature network that it needs."""
    needs: tuple[str, ...] = ()
    """Images that it needs beside the results."""


_TO_224 = "Pillow, antialiased, 8 bits, aspect not kept"

METRICS = {
    "clip_score": Metric(
        "CLIP score",
        True,
        2,
        "Paint by Example's: the result cropped to the mask's bounding box (bilinear) and the reference "
        f"(bicubic), both resized to the encoder's size ({_TO_224}); cosine of their image embeddings x 100. "
        "The box is whole: the published code leaves out its last row and column",
        "clip",
        ("mask", "reference"),
    ),
    "dinov2_similarity": Metric(
        "DINOv2 similarity",
        True,
        2,
        f"the result cropped to the mask's bounding box, and the reference, both resized (bicubic; {_TO_224}); cosine "
        "of their CLS tokens after the last LayerNorm x 100",
        "dinov2",
        ("mask", "reference"),
    ),
    "fid": Metric(
        "FID",
        False,
        2,
        "pytorch-fid's: images in [0, 1] resized to 299 x 299 (bilinear, no antialiasing, aspect not kept), pool3 "
        "features; squared Frechet distance with sample covariances, float64; results against truths",
        "inception",
        ("truth",),
    ),
    "kid": Metric(
        "KID",
        False,
        5,
        "FID's features; kernel (x.y / d + 1)^3, unbiased estimate over all pairs (not the mean over subsets of 1000, "
        "which has the same expectation); not multiplied by 1000",
        "inception",
        ("truth",),
    ),
    "clip_fid": Metric(
        "CLIP-FID",
        False,
        3,
        f"Frechet distance of CLIP's image embeddings of whole images (bicubic; {_TO_224}), not normalised",
        "clip",
        ("truth",),
    ),
    "lpips": Metric(
        "LPIPS",
        False,
        4,
        "version 0.1, result and truth at their own size, mean over images",
        "lpips",
        ("truth", "pair"),
    ),
    "ssim": Metric(
        "SSIM",
        True,
        4,
        "Gaussian window 11 x 11, sigma 1.5, data range 1; mean over RGB and the pixels whose window is "
        "inside the image",
        None,
        ("truth", "pair"),
    ),
    "psnr": Metric(
        "PSNR (dB)", True, 2, "whole image; mean of the images' PSNRs; 100 for equal images", None, ("truth", "pair")
    ),
    "ssim_in_mask": Metric(
        "SSIM in mask",
        True,
        4,
        "SSIM's map, mirrored at the image's edges, averaged over RGB and the mask's pixels; its window sees five "
        "pixels beyond the mask",
        None,
        ("truth", "pair", "mask"),
    ),
    "psnr_in_mask": Metric(
        "PSNR in mask (dB)",
        True,
        2,
        "over the mask's pixels; mean of the images' PSNRs",
        None,
        ("truth", "pair", "mask"),
    ),
    "own_colors": Metric(
        "own colours nearest",
        True,
        3,
        "share of the results whose colours in the mask (histogram of 8 x 8 x 8 cells of RGB) are nearest to their own "
        "reference's (its product's pixels: no white margin, hole or studio backdrop) among all references of the set; "
        "Bhattacharyya distance; chance is 1 over their number",
        None,
        ("mask", "reference"),
    ),
    "changed_outside": Metric(
        "changed outside mask",
        False,
        5,
        "share of the pixels outside the mask of which a channel differs from the scene's by more than the tolerance, "
        "before any paste-back",
        None,
        ("scene", "mask"),
    ),
}
"""Every figure by its name in the JSON, in the table's order."""

OF_SETS = ("fid", "kid", "clip_fid")
"""Those that are figures of whole sets and not means over images."""

FLAGS = {"clip": "--clip", "dinov2": "--dinov2", "inception": "--inception", "lpips": "--lpips"}

_IMAGES = {
    "truth": "no truth to compare with",
    "scene": "no scene to compare with",
    "mask": "no masks",
    "reference": "no references",
    "pair": "results and truths are not paired",
}


def why_left_out(metric: Metric, networks: set[str], images: set[str]) -> str | None:
    """Why a figure cannot be had, or None.

    Args:
        metric: Which.
        networks: Kinds of feature networks that are there.
        images: What there is beside the results: truth, scene, mask, reference, and "pair".
    """
    for need in metric.needs:
        if need not in images:
            return _IMAGES[need]
    if metric.network is not None and metric.network not in networks:
        return f"no weights for it: {FLAGS[metric.network]}"
    return None
