"""VITON-HD as a TFDS data set. For non-commercial research only, which the data set's metadata repeats.

python -m dtc_jax.data.build vitonhd --source zalando-hd-resized --output data
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from dtc_jax.data.builders.building import RecordsBuilder, RecordsConfig
from dtc_jax.data.builders.source import NO_SOURCE, Source
from dtc_jax.data.builders.vitonhd_source import HOMEPAGE, MaskChoice, VitonHDSource


@dataclasses.dataclass(eq=False, kw_only=True)
class VitonHDConfig(RecordsConfig):
    """`source` is the unpacked folder, with `train_pairs.txt` and `train/` in it."""

    mask: MaskChoice = "auto"
    """See `VitonHDSource.mask`."""
    noface: bool = False
    """See `VitonHDSource.noface`."""


class VITONHD(RecordsBuilder):
    """Persons with the garment that they wear, and a photo of the garment alone."""

    name = "vitonhd"
    BUILDER_CONFIGS: ClassVar[list[VitonHDConfig]] = [VitonHDConfig(name=NO_SOURCE)]  # tfds build asks for one
    DESCRIPTION: ClassVar[str] = "VITON-HD: photos of persons, their upper garment masked, and the garment on white."
    HOMEPAGE: ClassVar[str | None] = HOMEPAGE
    CITATION: ClassVar[str | None] = (
        "@inproceedings{choi2021viton, title={VITON-HD: High-Resolution Virtual Try-On via Misalignment-Aware "
        "Normalization}, author={Choi, Seunghwan and Park, Sunghyun and Lee, Minsoo and Choo, Jaegul}, "
        "booktitle={CVPR}, year={2021}}"
    )

    def make_source(self) -> Source:
        """The folder."""
        config = self.builder_config
        return VitonHDSource(root=config.source, mask=config.mask, noface=config.noface)
