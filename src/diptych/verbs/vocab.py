"""Train a vocabulary on your own captions."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from diptych.command_line import path_argument
from diptych.data.captions import all_captions, caption_of, clean_caption
from diptych.data.tokenizer import Tokenizer, train_vocabulary
from diptych.errors import UserError
from diptych.files import check_writable, writing
from diptych.terminal import counted

WAY_OUT = "name another file with --output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a text file with a caption a line, or shards (folder, .tar or brace pattern)",
    )
    parser.add_argument("--size", type=int, default=8192, help="tokens at most (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path("vocabulary.json"),
        metavar="FILE",
        help="where to write it (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.output, WAY_OUT)
    tokenizer = train_vocabulary(_captions(arguments.sources), arguments.size)
    num_captions, num_bytes, num_tokens = _measure(tokenizer, _captions(arguments.sources))
    if not num_tokens:
        raise UserError(f"no captions in {', '.join(arguments.sources)}")
    with writing(arguments.output, WAY_OUT):
        tokenizer.save(arguments.output)

    print(
        f"{arguments.output}: {counted(tokenizer.vocab_size, 'token')} from {counted(num_captions, 'caption')}, "
        f"{num_bytes / num_tokens:.2f} bytes a token"
    )
    if tokenizer.vocab_size < arguments.size:
        print(f"{counted(arguments.size, 'token')} were asked for; these captions have no more pairs that occur twice")


def _measure(tokenizer: Tokenizer, captions: Iterable[str]) -> tuple[int, int, int]:
    """The numbers of captions, of bytes in the cleaned captions, and of their tokens."""
    num_captions = num_bytes = num_tokens = 0
    for caption in captions:
        num_captions += 1
        num_bytes += len(clean_caption(caption).encode())
        num_tokens += len(tokenizer.encode(caption))
    return num_captions, num_bytes, num_tokens


def _captions(sources: Iterable[str]) -> Iterator[str]:
    for source in sources:
        is_text = Path(source).is_file() and not source.endswith(".tar")
        yield from _captions_in_text(source) if is_text else _captions_in_shards(source)


def _captions_in_text(path: str) -> Iterator[str]:
    with open(path, "rb") as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            raise UserError(f"{path} is compressed with gzip; unpack it first: gunzip --keep {path}")
        for number, line in enumerate(file, start=1):
            try:
                caption = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}, is not UTF-8 ({error.reason}); "
                    "`iconv -f LATIN1 -t UTF-8` converts from Latin-1"
                ) from error
            if caption:
                yield caption


def _captions_in_shards(location: str) -> Iterator[str]:
    from diptych.data.shards import open_index
    from diptych.data.shards_ahead import all_samples

    index = open_index(location)
    for sample in all_samples(index):
        texts = index.read(sample, "txt", "json")
        if caption := caption_of(texts):
            yield from all_captions(caption, texts.get("json", b"")) or (caption,)
