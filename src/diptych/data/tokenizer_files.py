"""Write a vocabulary as files of Hugging Face's tokenizers, which open_clip reads.

open_clip first repairs, collapses and lower-cases the text (its `clean: lower`), as our tokenizer does, so these files
only split it and join bytes. Letters, digits and spaces are written out as ranges, since classes such as \\p{L} depend
on the Unicode version of the reader. The special tokens have upper-case names, which no lower-cased caption contains.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import regex

from diptych.data.tokenizer import Tokenizer
from diptych.files import commit_file

START, END, PADDING = "<|START|>", "<|END|>", "<|PADDING|>"

TOKENIZER_SETTINGS = {"clean": "lower", "strip_sep_token": True}
"""Settings of open_clip's HFTokenizer. The second replaces the padding token, which is also named as separator, by
zeros, as our tokenizer pads."""


def save_tokenizer_files(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, each completely or not at all."""
    special = {START: tokenizer.start_token, END: tokenizer.end_token, PADDING: tokenizer.vocab_size}
    documents = {
        "tokenizer.json": _tokenizer_json(tokenizer, special),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": END,
            "pad_token": PADDING,
            "sep_token": PADDING,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, document in documents.items():
        commit_file(folder / name, json.dumps(document, ensure_ascii=False, indent=1).encode())


def _tokenizer_json(tokenizer: Tokenizer, special: dict[str, int]) -> dict[str, Any]:
    added = [
        {
            "id": number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for content, number in special.items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _pieces()}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(START), {"Sequence": {"id": "A", "type_id": 0}}, _special(END)],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {name: {"id": name, "ids": [special[name]], "tokens": [name]} for name in (START, END)},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {written: number for number, written in enumerate(tokenizer.written_tokens)},
            "merges": [f"{left} {right}" for left, right in tokenizer.merges],
        },
    }


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _pieces() -> str:
    """The tokenizer's splitting pattern for lower-cased text; U+017F, long s, matches as an s."""
    letters, digits, spaces = (_ranges(kind) for kind in (r"\p{L}", r"\p{N}", r"\s"))
    return f"'[sſ]|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{digits}]|[^{spaces}{letters}{digits}]+"


def _ranges(kind: str) -> str:
    """All characters of a Unicode class, as ranges for a pattern."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    runs = regex.finditer(f"{kind}+", everything)
    return "".join(rf"\x{{{run.start():X}}}-\x{{{run.end() - 1:X}}}" for run in runs)
