"""Put the samples of shards into groups that are alike, for `data.groups` of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych.command_line import add_device_argument, add_ema_argument, add_model_argument, path_argument
from diptych.errors import UserError
from diptych.files import check_writable, writing
from diptych.terminal import counted, printable

WAY_OUT = "make room there, or name another file with --output"
SAMPLES_A_GROUP = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "shards", nargs="+", metavar="SHARDS", help="the shards of data.train, in its order: folders, tars or patterns"
    )
    parser.add_argument(
        "--groups",
        type=int,
        metavar="K",
        help=f"how many groups (default: one for {SAMPLES_A_GROUP} samples, at most 10000); their centres "
        "are fitted to at most 256 samples a group, drawn at random, whose embeddings are kept in memory: 5 GB for "
        "10000 groups and a model with embeddings of 512 numbers",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path("groups.npz"),
        metavar="FILE.npz",
        help="where to write them, for data.groups.file (default: %(default)s)",
    )
    add_ema_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from diptych.clustering import cluster
    from diptych.data.groups import write_groups
    from diptych.data.shards import open_index
    from diptych.encoder import load

    if arguments.output.suffix != ".npz":
        raise UserError(f"--output {arguments.output} must end in .npz")
    index = open_index(arguments.shards)
    most = index.total_samples // 2
    number = arguments.groups
    if number is None:
        number = max(2, min(index.total_samples // SAMPLES_A_GROUP, 10_000))
    if not 2 <= number <= most:
        raise UserError(
            f"--groups {number}: {', '.join(arguments.shards)} has {counted(index.total_samples, 'sample')}; expected "
            f"2 to {most:,} groups"
        )
    check_writable(arguments.output, WAY_OUT)
    encoder = load(arguments.model, arguments.device, ema=arguments.ema)
    clustered = cluster(encoder, index, number)
    with writing(arguments.output, WAY_OUT):
        write_groups(arguments.output, clustered.groups, index.fingerprint)
    smallest, median, largest = clustered.sizes()
    print(
        f"{printable(str(arguments.output))}: {counted(index.total_samples, 'sample')} in "
        f"{counted(clustered.number, 'group')} of "
        f"{smallest:,} to {largest:,}, half of them up to {median:,}; cosine to the group's centre "
        f"{clustered.cosine:.2f}, to that of the next group {clustered.next_cosine:.2f}"
    )
    if clustered.undecodable:
        print(f"{counted(clustered.undecodable, 'picture')} that cannot be decoded: in a group of their own, the last")
