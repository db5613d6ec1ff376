"""Paint by Example with all tokens and without the perceptual loss, all else as in tiny_no_hint."""

from dataclasses import replace

from configs.tiny_no_hint import CONFIG as TINY_NO_HINT

CONFIG = replace(
    TINY_NO_HINT,
    name="tiny_no_hint_no_perceptual",
    prerequisites=("tiny_autoencoder",),
    loss=replace(TINY_NO_HINT.loss, perceptual_weight=0.0),
)
