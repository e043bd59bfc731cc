import argparse
import gzip
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import tokenizer as tokenizer_module
from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import Tokenizer, load_tokenizer, train_vocabulary
from diptych.verbs import vocab

GOLDEN_FILE = Path(__file__).parent.parent / "golden" / "clip_tokens.jsonl.gz"
CONTROL_NAMES = ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"]
PARTS = [
    "it",
    "'s",
    "'ſ",
    "’ll",
    "&",
    "amp;",
    "é",
    "Ã©",
    "7",
    "½",
    "🇯🇵",
    "\u200d",
    " ",
    "\x85",
    "_",
    "ß",
    "SS",
    "İ",
]
CAPTIONS = [
    f"{opening} {colour} {noun}{ending}"
    for opening in ("A photo of the", "it's a", "Größe 42:")
    for colour in ("red", "deep-blue", "crème", "青い")
    for noun in ("cats", "catamaran", "dogs", "dogma", "café", "犬小屋")
    for ending in ("", "!!", " they'll love", " 😀")
]


@pytest.fixture(scope="module")
def clip():
    return load_tokenizer("clip")


@pytest.fixture(scope="module")
def small():
    return train_vocabulary(CAPTIONS, 560)


@pytest.fixture(scope="module")
def peer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def test_ids_are_the_golden_ones_of_open_clip(clip):
    made_by, *lines = gzip.decompress(GOLDEN_FILE.read_bytes()).decode("ascii").splitlines()
    golden = [json.loads(line) for line in lines]
    assert len(golden) >= 2000
    for text, ids in golden:
        assert clip.encode(text) == ids, f"{text!r}; golden {made_by}"


@given(st.text(st.characters()) | st.text(st.characters(codec="ascii")) | st.lists(st.sampled_from(PARTS)).map("".join))
@settings(max_examples=500, deadline=None)
def test_ids_are_those_of_open_clip_for_any_text(clip, peer, text):
    assert clip.encode(text) == peer.encode(text)


def test_rows_are_those_of_open_clip_with_their_lengths(clip, peer):
    texts = ["", "a cat", "café " * 40, "one " * 74, "one " * 75, "one " * 76, "x" * 1000]
    for context_length in (2, 3, 16, 77):
        tokens, lengths = clip(texts, context_length)
        assert tokens.dtype == lengths.dtype == np.int32
        np.testing.assert_array_equal(tokens, peer(texts, context_length).numpy())
        np.testing.assert_array_equal(lengths, (tokens == clip.end_token).argmax(1) + 1)


def test_truncation_keeps_the_start_and_end_token(clip):
    (row,), (length,) = clip("a photo of a cat on a mat", 5)
    assert row.tolist() == [clip.start_token, *clip.encode("a photo of"), clip.end_token]
    assert length == 5


def test_no_texts_give_no_rows(clip):
    tokens, lengths = clip([], 77)
    assert tokens.shape == (0, 77) and lengths.shape == (0,)


def test_a_context_without_room_for_the_control_tokens_is_refused(clip):
    with pytest.raises(ValueError, match="context_length 1 has no room"):
        clip("a cat", 1)


@pytest.mark.parametrize("name", [*CONTROL_NAMES, "<|ENDOFTEXT|>", "<End_Of_Text>"])
@pytest.mark.parametrize("disguise", ["{}", "{}{}", "a {} b", "x{}y", " {}\n"])
@pytest.mark.parametrize("less_than", ["<", "&lt;", "&amp;lt;"])
def test_control_tokens_in_a_caption_are_ordinary_text(clip, small, name, disguise, less_than):
    text = disguise.replace("{}", name.replace("<", less_than))
    for tokenizer in (clip, small):
        assert not {tokenizer.start_token, tokenizer.end_token} & set(tokenizer.encode(text))


def test_control_tokens_in_a_caption_are_the_pieces_they_are_spelled_with(clip, peer):
    spelled = ["<| startoftext |>", "<| endoftext |>", "< start _ of _ text >", "< end _ of _ text >"]
    for name, pieces in zip(CONTROL_NAMES, spelled, strict=True):
        assert clip.encode(name) == [token for piece in pieces.split() for token in peer.encode(piece)]


def test_a_word_of_a_hundred_thousand_letters_is_encoded_whole(clip):
    draw = random.Random(0)
    word = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    assert clip.decode(clip.encode(word)) == word


def test_the_cache_of_words_is_bounded_and_changes_no_ids(small, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_CACHED_WORDS", 3)
    fresh = Tokenizer(small.merges)
    for caption in [*CAPTIONS, "a " + "long" * 9]:
        assert fresh.encode(caption) == small.encode(caption)
        assert len(fresh._words) <= 3 and len(fresh._words._older) <= 3
    assert "long" * 9 not in fresh._words


def test_decoding_gives_the_lower_cased_pieces(clip):
    (row,), _ = clip("A Photo of the cat's café 😀!", 77)
    assert clip.decode(row) == "a photo of the cat 's café 😀!"
    assert clip.decode(clip.encode("犬 и кот")) == "犬 и кот"


def test_a_saved_vocabulary_loads_to_the_same_tokenizer(small, tmp_path):
    path = tmp_path / "vocabulary.json"
    small.save(path)
    assert list(tmp_path.iterdir()) == [path]
    for loaded in (Tokenizer.load(path), load_tokenizer(str(path))):
        assert loaded.merges == small.merges
        assert loaded.vocab_size == small.vocab_size
        assert [loaded.encode(caption) for caption in CAPTIONS] == [small.encode(caption) for caption in CAPTIONS]


def test_a_tokenizer_travels_to_another_process_without_its_cache(small):
    small.encode(CAPTIONS[0])
    copy = pickle.loads(pickle.dumps(small))
    assert copy.merges == small.merges and not copy._words
    assert copy.encode(CAPTIONS[0]) == small.encode(CAPTIONS[0])


def test_clip_s_vocabulary_can_be_saved_too(clip, tmp_path):
    clip.save(tmp_path / "vocabulary.json")
    assert Tokenizer.load(tmp_path / "vocabulary.json").merges == clip.merges
    assert (clip.vocab_size, clip.start_token, clip.end_token) == (49408, 49406, 49407)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "something"}, '"format" is not'),
        ({"version": 2}, '"version" is 2'),
        ({"vocab_size": 600}, '"vocab_size" is 600'),
        ({"merges": "a b"}, '"merges" are not'),
        ({"merges": ["c a", "ca t"], "vocab_size": 515}, '"vocab_size" is 515; its merges make 516'),
        (
            {"merges": ["ca t", "c a"], "vocab_size": 516},
            "merge 0, 'ca' with 't', joins something that is not yet a token",
        ),
        (
            {"merges": ["c a", "c a"], "vocab_size": 516},
            "merge 1, 'c' with 'a', makes a token that exists already",
        ),
        ({"merges": ["ca"], "vocab_size": 515}, "merge 0"),
        ({"merges": ["c a t"], "vocab_size": 515}, "merge 0"),
    ],
)
def test_a_wrong_vocabulary_is_refused_with_its_fault(change, complaint, tmp_path):
    document = {"format": "diptych vocabulary", "version": 1, "vocab_size": 515, "merges": ["c a"]}
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(document))
    Tokenizer.load(path)

    path.write_text(json.dumps(document | change))
    with pytest.raises(ValueError, match="vocabulary.json is not a vocabulary") as refusal:
        Tokenizer.load(path)
    assert complaint in str(refusal.value)


def test_half_a_vocabulary_is_refused(small, tmp_path):
    path = tmp_path / "vocabulary.json"
    small.save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="vocabulary.json is not a vocabulary"):
        load_tokenizer(str(path))


def test_a_missing_vocabulary_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="'clop' is neither `clip` nor a file; `diptych vocab` makes one"):
        load_tokenizer("clop")


def test_clip_without_its_distribution_is_refused_with_the_way_out(tmp_path):
    """In a Python whose path has what the tokenizer needs, but not open_clip_torch."""
    (site,) = {Path(np.__file__).parent.parent}
    for name in ("numpy", "numpy.libs", "regex", "ftfy", "wcwidth", "xxhash", "braceexpand"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    code = "from diptych.data.tokenizer import load_tokenizer; load_tokenizer('clip')"
    source = Path(tokenizer_module.__file__).parents[2]
    environment = {"PYTHONPATH": f"{source}:{tmp_path}"}
    answer = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
    last_line = answer.stderr.splitlines()[-1]
    assert last_line.startswith(
        "diptych.errors.UserError: vocabulary `clip` needs the file bpe_simple_vocab_16e6.txt.gz of"
    )
    assert "pip install 'diptych[clip]'" in last_line and "diptych vocab" in last_line


def test_a_merge_file_that_is_not_clip_s_is_refused(tmp_path, monkeypatch):
    """The file is in a distribution with the right name, which is found before the real one."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / name).write_bytes(gzip.compress(b"#version\na b"))
    described = tmp_path / "open_clip_torch-9.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Name: open_clip_torch\nVersion: 9\n")
    (described / "RECORD").write_text(f"open_clip/{name},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer_module._clip_tokenizer.cache_clear()
    with pytest.raises(ValueError, match=f"{name} is not CLIP's file: its sha256 is"):
        load_tokenizer("clip")


def test_loading_clip_s_vocabulary_imports_neither_torch_nor_open_clip():
    code = (
        "import sys; from diptych.data.tokenizer import load_tokenizer; load_tokenizer('clip'); "
        "assert not {'torch', 'open_clip', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trained_merges_segment_as_the_tokenizers_library_does(small):
    """The library uses CLIP's own pattern and byte alphabet, not our pieces."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(left + right for left, right in small.merges),
    ]
    library = Library(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=list(small.merges),
            end_of_word_suffix="</w>",
        )
    )
    library.normalizer = normalizers.Lowercase()
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in [
        *CAPTIONS,
        "catacombs of doggerel, dogdogdog",
        "зебра",
        "aaaa aaaaa",
        "x!!!!y",
        "they'll've 1234",
    ]:
        assert small.encode(text) == library.encode(text).ids


def test_training_merges_the_most_frequent_pair_first():
    tokenizer = train_vocabulary(["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5, 517)
    # Pairs: u+n</w> 16, u+g</w> 15, p+u 17; after pu: pu+n</w> 12.
    assert tokenizer.merges == (("p", "u"), ("h", "u"), ("pu", "n</w>"))


def test_training_gives_equal_vocabularies_for_equal_captions_in_any_order(small):
    shuffled = random.Random(1).sample(CAPTIONS, len(CAPTIONS))
    code = (
        "import json, sys; from diptych.data.tokenizer import train_vocabulary; "
        "print(json.dumps(train_vocabulary(json.load(sys.stdin), 560).merges))"
    )
    for captions in (CAPTIONS, shuffled):
        command = [sys.executable, "-c", code]
        answer = subprocess.run(command, input=json.dumps(captions), stdout=subprocess.PIPE, text=True, check=True)
        assert tuple(map(tuple, json.loads(answer.stdout))) == small.merges


def test_training_gives_the_size_asked_for_or_what_the_captions_allow(small):
    assert small.vocab_size == 560
    assert train_vocabulary(CAPTIONS, 514).merges == ()
    assert train_vocabulary(["a cat", "a dog"], 10_000).merges == ()
    assert train_vocabulary([], 600).vocab_size == 514


def test_control_tokens_and_end_of_word_marks_in_captions_train_no_control_token():
    tokenizer = train_vocabulary([*CONTROL_NAMES, "a</w> </w>", "&lt;/w&gt;"] * 20, 2000)
    for name in [*CONTROL_NAMES, "</w>"]:
        assert max(tokenizer.encode(name)) < tokenizer.start_token
        assert tokenizer.decode(tokenizer.encode(name)).replace(" ", "") == name


def test_a_vocabulary_smaller_than_its_bytes_is_refused():
    with pytest.raises(ValueError, match="a vocabulary of 513 tokens is too small: .* make 514"):
        train_vocabulary(["a cat"], 513)


def run_vocab(*words: object) -> None:
    parser = argparse.ArgumentParser()
    vocab.add_arguments(parser)
    vocab.run(parser.parse_args([str(word) for word in words]))


def test_the_command_trains_on_lines_of_text(tmp_path, capsys, small):
    source, output = tmp_path / "captions.txt", tmp_path / "made" / "vocabulary.json"
    source.write_text("\n".join(CAPTIONS) + "\n\n", encoding="utf-8")
    run_vocab(source, "--size", 560, "--output", output)

    assert load_tokenizer(str(output)).merges == small.merges
    assert f"{output}: 560 tokens from 288 captions, " in capsys.readouterr().out


def test_the_command_trains_on_shards_as_on_the_same_lines_of_text(tmp_path, capsys, small):
    with ShardWriter(tmp_path, 0) as shard:
        for number, caption in enumerate(CAPTIONS):
            in_json = json.dumps({"caption": caption}).encode()
            text = {"txt": caption.encode()} if number % 2 else {"json": in_json}
            shard.add(f"{number:06}", {"jpg": b"not read", **text})
    run_vocab(tmp_path, "--size", 560, "--output", tmp_path / "vocabulary.json")

    assert Tokenizer.load(tmp_path / "vocabulary.json").merges == small.merges
    assert "560 tokens from 288 captions" in capsys.readouterr().out


def test_the_command_says_when_captions_are_too_few(tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a cat\na cat\n")
    run_vocab(tmp_path / "captions.txt", "--output", tmp_path / "vocabulary.json")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/vocabulary.json: 516 tokens from 2 captions, 2.50 bytes a token",
        "8,192 tokens were asked for; these captions have no more pairs that occur twice",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a cat\n\xe9t\xe9\n", "captions.txt, line 2, is not UTF-8"),
        (b" \n\n", "no captions in .*captions.txt"),
    ],
)
def test_the_command_refuses_files_without_captions_and_writes_nothing(content, complaint, tmp_path):
    (tmp_path / "captions.txt").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        run_vocab(tmp_path / "captions.txt", "--output", tmp_path / "vocabulary.json")
    assert not (tmp_path / "vocabulary.json").exists()
