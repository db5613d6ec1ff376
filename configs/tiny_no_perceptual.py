"""The shipped model without the perceptual loss, hence without its VGG, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_no_perceptual",
    prerequisites=("tiny_autoencoder",),
    loss=replace(TINY.loss, perceptual_weight=0.0),
)
