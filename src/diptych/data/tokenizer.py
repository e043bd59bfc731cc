"""CLIP's byte-pair encoding: turn captions into token ids, and train vocabularies on your own captions.

The ids are those of OpenAI's and open_clip's tokenizers for every string, with one exception: in a caption,
the names of control tokens (`<|startoftext|>`, `<|endoftext|>`, `<start_of_text>`, `<end_of_text>`) are
ordinary text. The splitting pattern does not know them, so `<|endoftext|>` becomes the three pieces `<|`,
`endoftext`, `|>`, and `<end_of_text>` the seven pieces `<`, `end`, `_`, `of`, `_`, `text`, `>`. So no caption
can contain a control token.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from pathlib import Path

import numpy as np
import regex

from diptych.data.captions import clean_caption
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.files import commit_file

_PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
"""Splits a text into pieces; no merge joins tokens of two pieces. It ignores case although the text is lower-cased,
because U+017F, long s, then matches as an s."""

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_BYTES = _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]
"""The byte of each of the first 256 tokens, in GPT-2's order."""
_LETTERS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + n) for n in range(256 - len(_PRINTABLE))]
"""The visible character that stands for each of these bytes in merges, as in GPT-2."""
_BYTE_ID = [_BYTES.index(byte) for byte in range(256)]
_END_OF_WORD = "</w>"
_BASE = tuple(_LETTERS + [letter + _END_OF_WORD for letter in _LETTERS])

_CACHED_WORDS = 2**16
"""Words in each of the cache's two generations."""
_LONGEST_CACHED_WORD = 32
"""The longest word in the cache, in characters. Longer words rarely repeat; this limit bounds the cache's memory."""

_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
_CLIP_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_CLIP_MERGES = 49_152 - 256 - 2
"""How many of the file's 262,144 merges CLIP uses; the first line of the file is a heading."""

_CLIP_FINGERPRINT = "d68a266f3d06b07f7f3e227ca4e1501ab8f0d245f9093d8ab23a2068f8b7ce2a"

_FORMAT = "diptych vocabulary"
_FORMAT_VERSION = 1


class Tokenizer:
    """Encodes captions as token ids, and decodes them.

    Ids, in this order: the 256 bytes, the 256 bytes at the end of a word, one for each merge by rank, the start token,
    the end token. Each merge joins two tokens that come before it into a new one.
    """

    def __init__(self, merges: Iterable[tuple[str, str]]):
        self.merges = tuple(merges)
        self._joined: dict[tuple[int, int], int] = {}
        self._bytes = [bytes([byte]) for byte in _BYTES] + [bytes([byte]) + b" " for byte in _BYTES]
        ids = {written: token for token, written in enumerate(_BASE)}

        for number, (left, right) in enumerate(self.merges):
            if left not in ids or right not in ids:
                raise UserError(f"merge {number}, {left!r} with {right!r}, joins something that is not yet a token")
            if left + right in ids:
                raise UserError(f"merge {number}, {left!r} with {right!r}, makes a token that exists already")
            self._joined[ids[left], ids[right]] = ids[left + right] = len(ids)
            self._bytes.append(self._bytes[ids[left]] + self._bytes[ids[right]])

        self.start_token = len(ids)
        self.end_token = len(ids) + 1
        self.vocab_size = len(ids) + 2
        self._words = _WordCache(self._encode_word)

    def __reduce__(self) -> tuple[object, ...]:
        return Tokenizer, (self.merges,)

    def __call__(self, texts: str | Sequence[str], context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encode one text or many: tokens i32[texts context_length] and lengths i32[texts].

        A row is the start token, the text, the end token, then zeros; its length does not count the zeros. A text
        that does not fit is cut before the end token.
        """
        if context_length < 2:
            raise UserError(
                f"context_length {context_length} has no room for the start and the end token; it must be at least 2"
            )
        texts = [texts] if isinstance(texts, str) else texts

        start, end = _packed([self.start_token]), _packed([self.end_token])
        room = len(_packed([0])) * (context_length - 2)
        rows = [b"".join((start, self._encode_packed(text)[:room], end)) for text in texts]
        lengths = np.array([len(row) // len(start) for row in rows], dtype=np.int32)

        tokens = np.zeros((len(texts), context_length), dtype=np.int32)
        tokens[np.arange(context_length) < lengths[:, None]] = np.frombuffer(b"".join(rows), dtype=np.int32)
        return tokens, lengths

    def encode(self, text: str) -> list[int]:
        """The whole text's ids, without start and end token."""
        ids: list[int] = np.frombuffer(self._encode_packed(text), dtype=np.int32).tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the end token, if there is one: lower-cased, with a space after each word or piece."""
        text = b""
        for token in ids:
            if token == self.end_token:
                break
            if token != self.start_token:
                text += self._bytes[token]
        return text.decode(errors="replace").rstrip()

    def ends_word(self, token: int) -> bool:
        """Whether a word or a piece ends with the token, so that `decode` puts a space after it."""
        return self._bytes[token].endswith(b" ")

    @property
    def written_tokens(self) -> list[str]:
        """Every token as it is written in merges, in order of ids; without start and end."""
        return [*_BASE, *(left + right for left, right in self.merges)]

    @property
    def is_clips(self) -> bool:
        """Whether the ids are those of CLIP's own vocabulary."""
        return self.fingerprint == _CLIP_FINGERPRINT

    @property
    def fingerprint(self) -> str:
        """The sha256 of the merges: equal for tokenizers that give equal ids."""
        return hashlib.sha256(repr(self.merges).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as one JSON file, completely or not at all."""
        commit_file(Path(path), self.as_json().encode())

    def as_json(self) -> str:
        """The content of the file that `save` writes."""
        document = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "vocab_size": self.vocab_size,
            "merges": [f"{left} {right}" for left, right in self.merges],
        }
        return json.dumps(document, ensure_ascii=False, indent=1)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer that `save` wrote.

        Raises:
            ValueError: the file is not a complete and consistent vocabulary.
        """
        try:
            return Tokenizer(_merges_of(parse_json(Path(path).read_text(encoding="utf-8"))))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a vocabulary that `diptych vocab` wrote: {error}") from error

    def _encode_packed(self, text: str) -> bytes:
        # Ids are kept as bytes of int32, so that a known word needs no Python code and creates no int objects.
        return b"".join(map(self._words.__getitem__, clean_caption(text).lower().split()))

    def _encode_word(self, word: str) -> bytes:
        """The packed ids of lower-cased text without whitespace, of one piece (`dog`) or several (`dog's!`)."""
        pieces = _PIECE.findall(word)
        if pieces != [word]:
            return b"".join(map(self._words.__getitem__, pieces))
        tokens = [_BYTE_ID[byte] for byte in word.encode()]
        tokens[-1] += len(_BYTES)
        return _packed(self._merge(tokens))

    def _merge(self, tokens: list[int]) -> list[int]:
        """Join pairs of tokens, lowest rank first and left to right, until none can be joined.

        The pairs that a join creates contain its product, so they have a higher rank. Therefore a heap ordered by rank
        and place joins in the same order as CLIP's repeated scans, without their quadratic time.
        """
        gone = -1
        end = len(tokens)
        tokens = [*tokens, gone]  # the neighbour of the first and of the last token
        before = list(range(-1, end))
        after = list(range(1, end + 1))
        joined = self._joined.get
        heap = [(join, place) for place in range(end) if (join := joined((tokens[place], tokens[place + 1])))]
        heapify(heap)

        while heap:
            join, place = heappop(heap)
            if joined((tokens[place], tokens[after[place]])) != join:
                continue  # one of the two has since been joined with another
            tokens[after[place]] = gone
            tokens[place] = join
            after[place] = after[after[place]]
            before[after[place]] = place
            for left in (before[place], place):
                if pair := joined((tokens[left], tokens[after[left]])):
                    heappush(heap, (pair, left))
        return [token for token in tokens if token != gone]


class _WordCache(dict[str, bytes]):
    """A cache of each word's packed ids, which are computed at the first lookup.

    It has two generations: when the newer one is full, it replaces the older one, and words of the older one move to
    the newer one when they are looked up. So common words stay and rare ones are dropped, without any bookkeeping when
    a word is found.
    """

    def __init__(self, encode: Callable[[str], bytes]):
        self._encode = encode
        self._older: dict[str, bytes] = {}

    def __missing__(self, word: str) -> bytes:
        packed = self._older.get(word) or self._encode(word)
        if len(word) <= _LONGEST_CACHED_WORD:
            if len(self) >= _CACHED_WORDS:
                self._older = dict(self)
                self.clear()
            self[word] = packed
        return packed


def _packed(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def load_tokenizer(vocabulary: str) -> Tokenizer:
    """The tokenizer for `clip` (CLIP's 49,408 tokens) or for a vocabulary file.

    Raises:
        ValueError: CLIP's merges are not installed or have been changed, or the vocabulary file does not exist.
    """
    if vocabulary == "clip":
        return _clip_tokenizer()
    if not Path(vocabulary).is_file():
        raise UserError(f"vocabulary {vocabulary!r} is neither `clip` nor a file; `diptych vocab` makes one")
    return Tokenizer.load(vocabulary)


@lru_cache(1)
def _clip_tokenizer() -> Tokenizer:
    return Tokenizer(_clip_merges())


def train_vocabulary(captions: Iterable[str], size: int) -> Tokenizer:
    """Train a tokenizer of at most `size` tokens, whose merges are the most frequent pairs in the captions.

    The order of the captions does not matter. Pairs that occur once are not merged, so few captions may give fewer
    than `size` tokens.

    Raises:
        ValueError: the size is below the number of tokens that every vocabulary has.
    """
    from tokenizers import Tokenizer as Trainee
    from tokenizers import models, pre_tokenizers, trainers

    without_merges = len(_BASE) + 2
    if size < without_merges:
        raise UserError(
            f"a vocabulary of {size} tokens is too small: the bytes, the bytes that end a word, "
            f"the start and the end token make {without_merges}"
        )
    trainee = Trainee(models.BPE(end_of_word_suffix=_END_OF_WORD))
    trainee.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        end_of_word_suffix=_END_OF_WORD,
        # Listed first, the base tokens get our ids. Otherwise the trainer would number those that end a word in the
        # order of a hash table, and it breaks ties between pairs by these numbers.
        special_tokens=list(_BASE),
        show_progress=False,
    )
    trainee.train_from_iterator(_written_pieces(captions), trainer)
    return Tokenizer((left, right) for left, right in json.loads(trainee.to_str())["model"]["merges"])


def _written_pieces(captions: Iterable[str]) -> Iterator[str]:
    """Each caption as the trainer reads it: pieces with spaces between them, and a visible character for each byte."""
    letter_of = [_LETTERS[_BYTE_ID[byte]] for byte in range(256)]

    @lru_cache(_CACHED_WORDS)
    def write(word: str) -> str:
        return " ".join("".join(letter_of[byte] for byte in piece.encode()) for piece in _PIECE.findall(word))

    for caption in captions:
        yield " ".join(map(write, clean_caption(caption).lower().split()))


def _merges_of(document: object) -> list[tuple[str, str]]:
    """The merges in the parsed JSON of a vocabulary file."""
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise UserError(f'its "format" is not "{_FORMAT}"')
    if document.get("version") != _FORMAT_VERSION:
        raise UserError(f'its "version" is {document.get("version")!r}, not {_FORMAT_VERSION}')
    lines = document.get("merges")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError('its "merges" are not a list of strings')
    vocab_size = len(_BASE) + len(lines) + 2
    if document.get("vocab_size") != vocab_size:
        raise UserError(f'its "vocab_size" is {document.get("vocab_size")!r}; its merges make {vocab_size}')
    return _split(lines)


def _split(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


def _clip_merges() -> list[tuple[str, str]]:
    """CLIP's merges, from a file of the installed open_clip_torch; importing that package would load torch."""
    way_out = "`pip install 'diptych[clip]'`, or give the path of a vocabulary of your own (`diptych vocab`)"
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == _CLIP_FILE), None)
    if path is None or not path.is_file():
        raise UserError(
            f"vocabulary `clip` needs the file {_CLIP_FILE} of open_clip_torch, which is not installed: {way_out}"
        )

    packed = path.read_bytes()
    sha256 = hashlib.sha256(packed).hexdigest()
    if sha256 != _CLIP_SHA256:
        raise UserError(
            f"{path} is not CLIP's file: its sha256 is {sha256}, not {_CLIP_SHA256}; remove "
            f"open_clip_torch and {way_out}"
        )
    return _split(gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + _CLIP_MERGES])
