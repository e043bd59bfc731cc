"""open_clip reads a vocabulary that was trained here as we do."""

import gzip
import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import cli, load
from diptych.data.tokenizer import train_vocabulary
from diptych.model_folder import save_model_folder
from tests.test_encoder import model_config

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_tokens.jsonl.gz"
TEXTS = [
    *["", " ", "!", "!!", "hello !", "a cat", "A CAT's tail", "it'S", "don't we'll I'm", "x\u2028y\x85z\x1cw"],
    *["<|endoftext|>", "<|START|> <|PADDING|>", "<|END|>", "&lt;b&gt; &amp;amp;", "a\u0000b\u0007c", "\u200b\ufeff"],
    *["ΣΑΣ ὈΔΥΣΣΕΎΣ", "İstanbul", "ß ẞ", "naïve café ﬁ Å", "日本語のテキスト", "👩\u200d👩\u200d👧 🇪🇪 ❤️", "\ud7ff"],
    *["e\u0301 vs é", "١٢٣ ½ Ⅷ", "'ſ ſ's", "a" * 500, "word " * 300],
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our encoder, and open_clip's model and tokenizer from its exported folder."""
    import open_clip

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_vocabulary([text.lower() for text in TEXTS] * 2 + ["a cat on the mat's edge, the cats"] * 9, 900)
    config = model_config()
    torch.manual_seed(0)
    from diptych.model.dual_encoder import DualEncoder

    save_model_folder(folder / "model", DualEncoder(config, tokenizer.vocab_size, 2.0).state_dict(), config, tokenizer)
    cli.main(["export", str(folder / "model"), str(folder / "out"), "--layout", "open_clip"])
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'out'}")
    return load(folder / "model", "cpu"), open_clip.get_tokenizer(f"local-dir:{folder / 'out'}"), model.eval()


def assert_equal_ids(both, texts):
    ours, theirs, _ = both
    wanted, _ = ours.tokenizer(texts, 10)
    found = theirs(texts).numpy()
    for text, row, other in zip(texts, wanted, found, strict=True):
        assert np.array_equal(row, other), f"{text!r}: {row} against {other}"


def test_open_clip_gives_the_same_ids_to_every_kind_of_text(both):
    assert_equal_ids(both, TEXTS)
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        assert_equal_ids(both, [json.loads(line)[0] for line in list(file)[1:]])


def test_open_clip_gives_the_same_ids_to_every_character(both):
    characters = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) != "Cs"]
    named = [c for c in characters if unicodedata.category(c) not in ("Cn", "Co")]
    others = [c for c in characters if unicodedata.category(c) in ("Cn", "Co")]  # 8 of 10, and all alike
    steps = (1, 1) if os.environ.get("NIGHTLY") else (29, 397)
    assert_equal_ids(both, [f"a{c}1{c}'s" for c in [*named[:: steps[0]], *others[:: steps[1]]]])


@given(st.lists(st.text(), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_open_clip_gives_the_same_ids_to_any_text(both, texts):
    assert_equal_ids(both, texts)


def test_open_clip_gives_the_same_text_embeddings(both):
    ours, theirs, model = both
    with torch.no_grad():
        found = torch.nn.functional.normalize(model.encode_text(theirs(TEXTS)), dim=-1)
    torch.testing.assert_close(found, ours.embed_texts(TEXTS), rtol=0, atol=1e-5)
