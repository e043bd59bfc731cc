"""Count what is in shards, and how many cores it takes to feed a GPU from them.

Samples are drawn evenly and decoded as a training config would decode them: sizes, formats, lengths of captions in
tokens and the share that is cut off, repeated captions, rejections by reason, the speed of a core on this machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from diptych.inspection import arguments as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_arguments(parser)
    parser.add_argument(
        "--samples", type=shared.positive, default=2_000, metavar="N", help="samples to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--gpu", action="append", metavar="NAME", help="a GPU to feed, such as H100; may be given several times"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the statistics."""
    from diptych.inspection.feeding import check_gpu, feeding, usual_gpus
    from diptych.inspection.look import look
    from diptych.inspection.summary import describe

    gpus = [check_gpu(gpu) for gpu in arguments.gpu] if arguments.gpu else usual_gpus()
    config = shared.read_config(arguments)
    found = look(config, num_samples=arguments.samples)
    statistics = found.statistics
    fed = feeding(
        config.model,
        found.tokenizer.vocab_size,
        gpus,
        mean_tokens=statistics.mean_tokens,
        samples_per_core_second=statistics.samples_per_core_second,
    )
    if arguments.json:
        print(json.dumps(statistics.to_dict() | {"feeding": asdict(fed)}, ensure_ascii=False))
    else:
        print(describe(statistics, fed))
