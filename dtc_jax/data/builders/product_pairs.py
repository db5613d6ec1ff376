"""A team's own catalogue as a TFDS data set, from a manifest.

    python -m dtc_jax.data.build product_pairs --source catalogue.jsonl --output data

What one machine cannot hold goes through TFDS's own command and Apache Beam; see docs/data.md.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from dtc_jax.data.builders.building import RecordsBuilder, RecordsConfig
from dtc_jax.data.builders.manifest_source import ManifestSource
from dtc_jax.data.builders.source import NO_SOURCE, Source


@dataclasses.dataclass(eq=False, kw_only=True)
class ProductPairsConfig(RecordsConfig):
    """`source` is the manifest: a path, or a URI that fsspec opens."""


class ProductPairs(RecordsBuilder):
    """Photos of scenes with a product, the product masked, and a photo of the product alone."""

    name = "product_pairs"
    BUILDER_CONFIGS: ClassVar[list[ProductPairsConfig]] = [ProductPairsConfig(name=NO_SOURCE)]  # tfds build asks
    DESCRIPTION: ClassVar[str] = "Scenes with a product, the product's mask, and a photo of the product alone."

    def make_source(self) -> Source:
        """The manifest."""
        return ManifestSource(manifest=self.builder_config.source)
