"""Embed pictures and texts into one space and write them to a .npz file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from diptych.command_line import add_device_argument, add_ema_argument, add_model_argument, path_argument
from diptych.data.caption_files import MAX_CAPTION_BYTES
from diptych.errors import UserError
from diptych.evaluation.embedding import embed
from diptych.evaluation.left_out import by_reason, in_words, left_out_by_reason
from diptych.evaluation.picture_sources import open_pictures
from diptych.evaluation.similarity import unit_norm
from diptych.evaluation.text_arrays import text_arrays
from diptych.files import check_writable, committed, read_lines, writing
from diptych.terminal import printable

WAY_OUT = "make room there, or name another file with --output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--pictures",
        metavar="PATH",
        nargs="+",
        default=[],
        help="picture files, folders of pictures, and shards (a folder of them, a .tar, a brace pattern); a picture "
        "in a shard is named by its key",
    )
    parser.add_argument("--captions", action="store_true", help="embed the (first) caption of each picture too")
    parser.add_argument("--texts", metavar="FILE", type=path_argument, help="UTF-8 text, one line each")
    parser.add_argument(
        "--output",
        metavar="FILE.npz",
        type=path_argument,
        required=True,
        help="where the arrays go: pictures and picture_embeddings, captions and caption_embeddings, texts and "
        "text_embeddings, logit_scale. `diptych-shards dedup --embeddings` reads it",
    )
    add_ema_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load

    if not arguments.pictures and arguments.texts is None:
        raise UserError("nothing to embed; give --pictures PATH..., --texts FILE or both")
    if arguments.captions and not arguments.pictures:
        raise UserError("--captions embeds the captions of --pictures PATH...; give that too")
    output = arguments.output
    if output.suffix != ".npz":
        raise UserError(f"--output {output} must end in .npz")
    pictures = open_pictures(arguments.pictures, with_captions=arguments.captions) if arguments.pictures else None
    texts = _texts(arguments.texts) if arguments.texts else None
    check_writable(output, WAY_OUT)

    encoder = load(arguments.model, arguments.device, ema=arguments.ema)
    arrays: dict[str, np.ndarray] = {}
    if pictures is not None:
        embedded = embed(encoder, pictures)
        arrays |= text_arrays("pictures", [pictures.names[place] for place in embedded.kept])
        arrays["picture_embeddings"] = unit_norm(embedded.embeddings)
        if pictures.captions:
            captions = [pictures.captions[place][0] for place in embedded.kept]
            arrays |= text_arrays("captions", captions)
            arrays["caption_embeddings"] = unit_norm(encoder.embed_texts(captions))
        for name, reason in embedded.rejected.items():
            print(printable(f"left out: {name}: {reason}"), file=sys.stderr)
        if pictures.refused:
            print(printable(f"left out for their captions: {in_words(by_reason(pictures.refused))}"), file=sys.stderr)
        if pictures.left_out:
            print(printable(f"left out: {in_words(left_out_by_reason(pictures.left_out))}"), file=sys.stderr)
    if texts is not None:
        arrays |= text_arrays("texts", texts)
        arrays["text_embeddings"] = unit_norm(encoder.embed_texts(texts))
    arrays["logit_scale"] = np.array(encoder.logit_scale, dtype=np.float32)
    with writing(output, WAY_OUT), committed(output) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    described = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items() if array.ndim)
    print(f"{printable(str(output))}: {described}")


def _texts(path: Path) -> list[str]:
    texts = read_lines(path, "name a readable text file with --texts")
    if not texts:
        raise UserError(f"{path} is empty; expected one text a line")
    for number, text in enumerate(texts, start=1):
        if len(text) > MAX_CAPTION_BYTES:
            raise UserError(
                f"{path}, line {number} has {len(text):,} characters; expected one text a line, of at most "
                f"{MAX_CAPTION_BYTES:,}"
            )
    return texts
