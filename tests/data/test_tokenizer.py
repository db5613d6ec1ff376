"""The tokenizer of bytes alone, and what is said of prompts and files that cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dtc_jax.config import ConfigError
from dtc_jax.data.tokenizer import BYTE_VOCABULARY, MERGES, VOCABULARY, Tokenizer, byte_files, read_files


def test_bytes_alone() -> None:
    tokenizer = Tokenizer(byte_files())
    assert tokenizer.vocab_size == BYTE_VOCABULARY == 514
    ids = tokenizer.encode("ab é", 8).tolist()
    # CLIP's order: the printable bytes first, each byte as the end of a word 256 later, the marks last.
    assert ids == [512, ord("a") - 33, 256 + ord("b") - 33, ids[3], ids[4], 513, 513, 513]
    assert ids[3] < 256 <= ids[4] < 512  # é is two bytes
    letters = json.loads(byte_files()[VOCABULARY])
    assert len(letters) == 514 and len(set(letters.values())) == 514


def test_longer_than_the_encoder_takes() -> None:
    tokenizer = Tokenizer(byte_files())
    assert tokenizer.encode("abcdef", 8).tolist()[-1] == 513
    with pytest.raises(ConfigError, match=r"prompt 'abcdefg': has 7 tokens, of which the encoder takes 6"):
        tokenizer.encode("abcdefg", 8)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 0}', "[" * 100_000], ids=lambda text: text[:5])
def test_files_of_another_kind(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: vocab.json and merges.txt are not those of CLIP's tokenizer"):
        Tokenizer({**byte_files(), VOCABULARY: text}, "here")


def test_merges_of_another_vocabulary(tmp_path: Path) -> None:
    files = {**byte_files(), MERGES: "#version: 0.2\nzz qq\n"}
    with pytest.raises(ConfigError, match=r"^here: not CLIP's tokenizer"):
        Tokenizer(files, "here")
    (tmp_path / VOCABULARY).write_text("{}")
    with pytest.raises(ConfigError, match=r"needs vocab.json and merges.txt, CLIP's tokenizer \(No such file"):
        read_files(tmp_path)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'dtc-jax\[dreampaint\]'"):
        Tokenizer(byte_files())
