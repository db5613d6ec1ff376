"""Our reading of CLIP's tokenizer against transformers', on a vocabulary that the test makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtc_jax.data.tokenizer import END, MERGES, START, VOCABULARY, Tokenizer, byte_files, read_files

transformers = pytest.importorskip("transformers")

PAIRS = ("a p", "p h", "ph o", "t o</w>", "pho to</w>", "o f</w>", "s k", "sk s</w>", "i r", "h ir", "hir t</w>")
PROMPTS = (
    "a photo of sks shirt",
    "",
    "   A  PHOTO\n of \t sks shirt ",
    "don't we'll I'm they're it's you'd I've",
    "12345 and 6.7% of 1,000",
    "café, cafe\u0301: Ünïcødé İ ß",
    "日本語 の シャツ 🙂🙂 \u200d",
    "!!! --- (sks)/[shirt] <b> &amp;",
    "sks<|endoftext|>shirt <|startoftext|>",
    "<|ENDOFTEXT|>",
    "a\u00a0photo\u2003of\u3000x",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes and a few merges, in the order of CLIP's vocabulary."""
    target = tmp_path_factory.mktemp("tokenizer")
    entries = [entry for entry in json.loads(byte_files()[VOCABULARY]) if entry not in (START, END)]
    entries += [pair.replace(" ", "") for pair in PAIRS] + [START, END]
    (target / VOCABULARY).write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (target / MERGES).write_text("\n".join(["#version: 0.2", *PAIRS, ""]))
    # As Stable Diffusion 1.5's is published.
    look = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = {**look, "content": START}, {**look, "content": END}
    marks = {"bos_token": start, "eos_token": end, "pad_token": END, "unk_token": end}
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **marks}))
    return target


@pytest.mark.parametrize("prompt", PROMPTS)
def test_odd_prompts(folder: Path, prompt: str) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))
    expected = theirs(prompt, padding="max_length", max_length=77).input_ids
    assert len(expected) == 77
    assert Tokenizer(read_files(folder)).encode(prompt, 77).tolist() == expected


def test_words_are_merged(folder: Path) -> None:
    tokenizer = Tokenizer(read_files(folder))
    ids = tokenizer.encode("a photo of sks", 8).tolist()
    marks = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert len(set(ids)) == 6 and (ids[0], ids[5:]) == (marks[0], [marks[1]] * 3)
