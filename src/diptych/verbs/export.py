"""Write a trained model to a new folder, in Diptych's layout or in open_clip's."""

from __future__ import annotations

import argparse
import shutil

from diptych.command_line import add_ema_argument, add_model_argument, path_argument
from diptych.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("out", type=path_argument, metavar="OUT", help="the folder to write; new or empty")
    add_ema_argument(parser)
    parser.add_argument(
        "--layout",
        choices=("diptych", "open_clip"),
        default="diptych",
        help="open_clip: for open_clip's `local-dir:OUT`, vision transformers only (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    from diptych.data.tokenizer_files import TOKENIZER_SETTINGS, save_tokenizer_files
    from diptych.evaluation.calibration_file import copy_calibration
    from diptych.files import check_writable, flush
    from diptych.model.open_clip_layout import save_open_clip
    from diptych.model_folder import VOCABULARY_FILE, model_folder, read_model_folder, save_model_folder

    out = arguments.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{arguments.out} is not empty; give the name of a folder that does not exist yet")
    check_writable(out / "config.json", "name a folder that can be")
    source = model_folder(arguments.model, ema=arguments.ema)
    state, config, tokenizer = read_model_folder(source)

    # OUT appears only when it is complete: the folder is renamed once its files are on the disk.
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if arguments.layout == "diptych":
            save_model_folder(partial, state, config, tokenizer)
        else:
            save_open_clip(partial, state, config, None if tokenizer.is_clips else TOKENIZER_SETTINGS)
            if not tokenizer.is_clips:
                save_tokenizer_files(partial, tokenizer)
            tokenizer.save(partial / VOCABULARY_FILE)
        copy_calibration(source, partial)
        for file in (*partial.iterdir(), partial):
            flush(file)
        partial.rename(out)
        flush(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    num_parameters = sum(tensor.numel() for tensor in state.values())
    print(f"{arguments.out}: {num_parameters:,} parameters of {source}, in the layout of {arguments.layout}")
    if arguments.layout == "open_clip" and not tokenizer.is_clips:
        print("its tokenizer is its own: open_clip reads it with transformers (pip install transformers)")
