"""Where a model's networks came from, written beside them, and under which licences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtc_jax.weights.tensor_source import WeightsError

SOURCES_FILE = "sources.json"

OPEN_RAIL_M = "CreativeML OpenRAIL-M"
APACHE = "Apache-2.0"

LICENCES = {
    OPEN_RAIL_M: "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "OpenRAIL": "https://huggingface.co/lllyasviel/sd-controlnet-canny",
    APACHE: "https://github.com/facebookresearch/dinov2/blob/main/LICENSE",
    "BSD-3-Clause": "https://github.com/pytorch/vision/blob/main/LICENSE",
    "MIT": "https://github.com/madebyollin/taesd/blob/main/LICENSE",
    "CC BY-NC 4.0": "https://github.com/shadow2496/VITON-HD#license",
}
"""Licences of published weights and data sets, and where they can be read."""

LICENCE_OF_LAYOUT = (
    ("ControlNet", "OpenRAIL"),
    ("AutoencoderTiny", "MIT"),
    ("TAESD", "MIT"),
    ("UNet", OPEN_RAIL_M),
    ("AutoencoderKL", OPEN_RAIL_M),
    ("Dinov2Model", APACHE),
    ("DinoVisionTransformer", APACHE),
    ("VGG", "BSD-3-Clause"),
)
"""Licence of the published weights that come in a layout, by what its name holds; the first that fits."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one network came from.

    Attributes:
        network: Of the model folder, e.g. "unet".
        origin: File or folder, or how it was made.
        layout: How the file spelled it; empty if it was not imported.
        licence: Of the published weights that usually come in that layout; empty if it was not imported.
    """

    network: str
    origin: str
    layout: str = ""
    licence: str = ""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.network}: {self.origin}" + (f" ({self.layout})" if self.layout else "")


def imported_from(network: str, origin: str, layout: str) -> Source:
    """A network that was read from a file, with the licence of what is usually published in its layout."""
    licence = next((licence for part, licence in LICENCE_OF_LAYOUT if part in layout), "")
    return Source(network=network, origin=origin, layout=layout, licence=licence)


def write_sources(folder: Path, sources: Sequence[Source]) -> None:
    """Write sources.json into a model folder."""
    (folder / SOURCES_FILE).write_text(json.dumps([dataclasses.asdict(source) for source in sources], indent=2) + "\n")


def read_sources(folder: Path) -> list[Source]:
    """What `write_sources` wrote; empty if there is no such file.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / SOURCES_FILE
    if not path.is_file():
        return []
    try:
        sources = [Source(**fields) for fields in json.loads(path.read_text())]
        if all(isinstance(word, str) for source in sources for word in vars(source).values()):
            return sources
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    raise WeightsError(f"{path}: not a list of sources; remove it to go on without")
