"""The paper's sizes with the edges that HED finds in the stitched reference as the hint (Fig. 16)."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax.config import HintConfig

CONFIG = replace(
    SD15,
    name="sd15_hed",
    model=replace(SD15.model, hint=HintConfig(kind="hed")),
)
