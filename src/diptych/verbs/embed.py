"""Embed pictures and texts into one space and write them to a .npz file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.evaluation.picture_sources import open_pictures
from diptych.evaluation.pictures import embed
from diptych.evaluation.similarity import unit_norm
from diptych.files import cannot, committed, read_text
from diptych.terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=path_argument, metavar="RUN", help="run directory (its newest checkpoint) or model folder"
    )
    parser.add_argument("--pictures", metavar="PATH", nargs="+", default=[], help="folders and picture files")
    parser.add_argument("--texts", metavar="FILE", type=path_argument, help="UTF-8 text, one line each")
    parser.add_argument("--output", metavar="FILE.npz", type=path_argument, required=True, help="where the arrays go")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (the GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load

    if not arguments.pictures and arguments.texts is None:
        raise UserError("nothing to embed; give --pictures PATH..., --texts FILE or both")
    if arguments.output.suffix != ".npz":
        raise UserError(f"--output {arguments.output} must end in .npz")
    pictures = open_pictures(arguments.pictures) if arguments.pictures else None
    way_out = "name a readable text file with --texts"
    texts = read_text(arguments.texts, way_out).splitlines() if arguments.texts else None
    if texts == []:
        raise UserError(f"{arguments.texts} is empty; expected one text a line")

    encoder = load(arguments.model, arguments.device)
    arrays: dict[str, np.ndarray] = {}
    if pictures is not None:
        embedded = embed(encoder, pictures)
        arrays["pictures"] = np.array([pictures.names[place] for place in embedded.kept])
        arrays["picture_embeddings"] = unit_norm(embedded.embeddings)
        for name, reason in embedded.rejected.items():
            print(printable(f"left out: {name}: {reason}"), file=sys.stderr)
    if texts is not None:
        arrays["texts"] = np.array(texts)
        arrays["text_embeddings"] = unit_norm(encoder.embed_texts(texts))
    arrays["logit_scale"] = np.array(encoder.logit_scale, dtype=np.float32)
    _write(arguments.output, arrays)
    described = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items() if array.ndim)
    print(f"{printable(str(arguments.output))}: {described}")


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with committed(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise cannot(error, path, "written", "make room there, or name another file with --output") from error
