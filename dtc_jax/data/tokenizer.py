"""CLIP's tokenizer: prompts to the ids that its text encoder reads, as Stable Diffusion 1.x pads them.

Byte-pair encoding over bytes (Sennrich et al., 2016, arXiv:1508.07909), read from vocab.json and merges.txt as they are
published with Stable Diffusion, by Hugging Face's tokenizers, which needs no PyTorch. A text encoder that is drawn
afresh has no vocabulary that belongs to it: bytes alone, without merges, serve it (`byte_files`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from dtc_jax.config_base import ConfigError

VOCABULARY, MERGES = "vocab.json", "merges.txt"
"""Files of a published tokenizer's folder."""

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

BYTE_VOCABULARY = 2 * 256 + 2
"""Entries of `byte_files`: each byte, each as the last of its word, and the two marks."""

# Words, each digit, runs of other characters; contractions are split off (openai/CLIP, clip/simple_tokenizer.py).
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """Prompts to ids.

    tokenizer = Tokenizer(read_files(folder))
    ids = tokenizer.encode("a photo of sks shirt", 77)
    """

    def __init__(self, files: Mapping[str, str], where: str = "tokenizer") -> None:
        """
        Args:
            files: The texts of `VOCABULARY` and `MERGES`.
            where: What messages call them.

        Raises:
            ConfigError: they are no tokenizer of CLIP's kind, or the tokenizers library is not installed.
        """
        self.files = dict(files)
        self._where = where
        try:
            vocabulary = json.loads(files[VOCABULARY])
            merges = [tuple(line.split()) for line in files[MERGES].splitlines()[1:] if line.strip()]
            self._start, self._end = int(vocabulary[START]), int(vocabulary[END])
            self.vocab_size = max(vocabulary.values()) + 1
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ConfigError(f"{where}: {VOCABULARY} and {MERGES} are not those of CLIP's tokenizer") from None
        self._backend = _backend(vocabulary, merges, where)

    def encode(self, prompt: str, length: int) -> Int32[np.ndarray, " length"]:
        """The prompt's ids between the two marks, padded with the mark of the end.

        Args:
            prompt: Any text; empty for what guidance compares with.
            length: Of the result: 77 for Stable Diffusion's text encoder.

        Raises:
            ConfigError: the prompt is longer than that.
        """
        ids = self._backend.encode(prompt, add_special_tokens=False).ids
        if len(ids) > length - 2:
            raise ConfigError(
                f"prompt {prompt[:60]!r}: has {len(ids)} tokens, of which the encoder takes {length - 2}; shorten it"
            )
        return np.array([self._start, *ids, *[self._end] * (length - 1 - len(ids))], np.int32)


def _backend(vocabulary: dict[str, int], merges: list[Any], where: str) -> Any:
    try:
        import tokenizers
        from tokenizers import Regex, models, normalizers, pre_tokenizers
    except ImportError:
        raise ConfigError("prompts need the tokenizers library: pip install 'dtc-jax[dreampaint]'") from None
    try:
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
        )
    except Exception as error:  # whatever Rust makes of a merge of what is not in the vocabulary
        raise ConfigError(f"{where}: not CLIP's tokenizer ({' '.join(str(error).split())[:160]})") from None
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_special_tokens([tokenizers.AddedToken(mark, normalized=False, special=True) for mark in (START, END)])
    return backend


def read_files(folder: Path) -> dict[str, str]:
    """The files of a tokenizer's folder, for `Tokenizer`.

    Raises:
        ConfigError: one is missing or cannot be read.
    """
    try:
        return {name: (folder / name).read_text(encoding="utf-8") for name in (VOCABULARY, MERGES)}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{folder}: needs {VOCABULARY} and {MERGES}, CLIP's tokenizer ({reason})") from None


def byte_files() -> dict[str, str]:
    """A tokenizer of bytes alone: no merges, `BYTE_VOCABULARY` entries in the order of CLIP's."""
    letters = _byte_letters()
    entries = [*letters, *(letter + WORD_END for letter in letters), START, END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return {VOCABULARY: json.dumps(vocabulary, ensure_ascii=False), MERGES: "#version: 0.2\n"}


def _byte_letters() -> list[str]:
    """A printable character for each byte (openai/gpt-2, encoder.py): itself, or one from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(own))
    return [chr(byte) for byte in own] + [chr(256 + number) for number in range(others)]
