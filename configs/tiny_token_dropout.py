"""The shipped model with Paint by Example's share of samples that lose their tokens, a fifth, all else equal."""

from dataclasses import replace

from configs.tiny import CONFIG as TINY

CONFIG = replace(
    TINY,
    name="tiny_token_dropout",
    loss=replace(TINY.loss, drop_tokens=0.2),
)
