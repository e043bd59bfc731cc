"""a table of URLs -> shards: fetch, check, resize, encode, pack

TABLE is a parquet, CSV, TSV or JSON-lines file, a folder or pattern of such, local or at a URL that fsspec reads. OUT
gets 00000.tar, 00000.parquet, 00000_stats.json as img2dataset writes them, and our index in OUT/_index/. Stopped at any
moment, the same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.files import read_text
from diptych.terminal import counted, percent, shown
from diptych_shards.arguments import add_engine, engine_of, positive

if TYPE_CHECKING:
    from diptych_shards.fetch.options import FetchOptions
    from diptych_shards.pictures.picture import PictureOptions
    from diptych_shards.shard_build.options import BuildOptions
    from diptych_shards.tables.delimited import Malformed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [OPTIONS] TABLE [TABLE ...] OUT"
    parser.add_argument("table", nargs="+", metavar="TABLE")
    parser.add_argument(
        "out", type=path_argument, metavar="OUT", help="a folder that is new, empty, or started by the same command"
    )
    _add_columns(parser.add_argument_group("columns of the table", "usual names are found"))
    _add_pictures(parser.add_argument_group("pictures"))
    _add_shards(parser.add_argument_group("shards"))
    _add_fetching(parser.add_argument_group("fetching"))
    _add_running(parser.add_argument_group("running"))


def run(chosen: argparse.Namespace) -> None:
    """Read the table, build, print the table of outcomes."""
    from diptych_shards.shard_build.build import build
    from diptych_shards.shard_build.build_progress import BuildProgress
    from diptych_shards.shard_build.shard_files import SUCCESS
    from diptych_shards.tables.columns import ColumnOptions
    from diptych_shards.tables.table import open_table

    columns = ColumnOptions(
        url=chosen.url_column,
        caption=chosen.caption_column,
        hash=chosen.hash_column,
        hash_kind=chosen.hash_kind,
        boxes=chosen.boxes_column,
        extra=None if chosen.columns is None else tuple(chosen.columns.split(",")),
    )
    retry = _reasons(chosen.retry_failed or "")
    table = open_table(chosen.table, columns, subset=chosen.subset, out=chosen.out)
    options = _options(chosen)
    progress = BuildProgress(chosen.wandb)
    try:
        report = build(table, chosen.out, options, engine_of(chosen), progress, retry)
    finally:
        progress.close()
    total, stored = report.outcomes.total(), report.outcomes[SUCCESS]
    if total:
        print(f"stored {stored:,} of {counted(total, 'row')} in {counted(report.shards, 'shard')}: {shown(chosen.out)}")
        print(_table(report.outcomes))
    else:
        print(f"the table has no rows: nothing to store in {shown(chosen.out)}")
    if table.malformed.counts:
        print("in the table, not counted above:")
        print(_malformed(table.malformed))
        if not total:
            raise UserError("no line of the table is a row; the reasons are above")
    if total and not stored:
        raise UserError(f"no picture could be stored; the reasons are above. {_way_out(report.outcomes)}")


def _add_columns(group: argparse._ArgumentGroup) -> None:
    for name, meaning in (
        ("url", "the address of the picture"),
        ("caption", "`none` for pictures without captions"),
        ("hash", "the hash of the file; a row is refused if its file has another"),
        ("boxes", "boxes to blur, [x0, y0, x1, y1] as fractions, as in DataComp's face_bboxes"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=meaning)
    group.add_argument(
        "--hash-kind",
        default="sha256",
        choices=("sha256", "md5", "sha512"),
        help="of the hashes in --hash-column (default %(default)s)",
    )
    group.add_argument("--columns", metavar="A,B", help="carry these into the metadata (default: all)")
    group.add_argument(
        "--subset", type=path_argument, metavar="FILE", help="a DataComp subset (.npy): only rows with these uids"
    )


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    from diptych_shards.pictures.picture import PictureOptions
    from diptych_shards.pictures.resize import RESIZE_MODES

    usual = PictureOptions()
    add = group.add_argument
    add("--for-training", type=positive, metavar="SIZE", help=(
        "store what training need not resize: shorter side of SIZE pixels, JPEG 4:2:0 of quality 90; replaces the next "
        "five"
    ))  # fmt: skip
    add("--image-size", type=int, metavar="N", help=f"pixels of a side (default {usual.image_size})")
    add("--resize-mode", choices=RESIZE_MODES, help=f"default {usual.resize_mode}, white; see data_prep/README.md")
    add("--resize-only-if-bigger", action="store_true", help="small pictures stay as they are")
    add("--encode-format", choices=("jpg", "png", "webp", "avif"), help=f"default {usual.encode_format}")
    add("--encode-quality", type=int, metavar="N", help="0 to 100 (default 95); for png compression, 0 to 9")
    add("--skip-reencode", action="store_true", help="keep the file's own bytes where no pixel changes")
    add("--min-image-size", type=int, default=0, metavar="N",
        help="refuse pictures whose shorter side is below N pixels (default %(default)s)")  # fmt: skip
    add("--max-image-area", type=float, default=float("inf"), metavar="N",
        help="refuse pictures of more than N pixels (default: the 100 million that no picture may exceed)")  # fmt: skip
    add("--max-aspect-ratio", type=float, default=float("inf"), metavar="X",
        help="refuse pictures whose longer side is more than X times the shorter (default: no limit)")  # fmt: skip
    add("--block-sha256", type=path_argument, metavar="FILE", help="refuse these files: hex digests, one a line")


def _add_shards(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rows-per-shard", "--number-sample-per-shard", type=int, default=10_000, metavar="N",
        help="rows of the table in each shard (default %(default)s)")  # fmt: skip
    add("--shard-digits", "--oom-shard-count", type=int, default=5, metavar="N",
        help="digits in the name of a shard (default %(default)s)")  # fmt: skip
    add("--keep-order", action="store_true",
        help="rows in the order of the table, instead of spreading neighbouring rows over the shards")  # fmt: skip
    add("--compute-hash", choices=("sha256", "md5", "sha512"), default="sha256",
        help="of the fetched bytes (default %(default)s)")  # fmt: skip


def _add_fetching(group: argparse._ArgumentGroup) -> None:
    from diptych_shards.fetch.options import FetchOptions

    usual = FetchOptions()
    add = group.add_argument
    at_one_host = (
        "URLs in transfer at one host, in all processes together (at least 1 in each); on Ray, in each process"
    )
    for name, kind, default, meaning in (
        ("--timeout", float, usual.timeout_seconds, "seconds for a URL, redirects and repetitions included"),
        ("--connect-timeout", float, usual.connect_timeout_seconds, "seconds for DNS, connection and TLS"),
        ("--retries", int, usual.retries, "repetitions after failures that may be temporary"),
        ("--in-flight", int, usual.in_flight, "URLs in transfer in each process"),
        ("--per-host", int, usual.per_host, at_one_host),
    ):
        add(name, type=kind, default=default, metavar="N", help=f"{meaning} (default {default:.9g})")
    add("--max-bytes", type=int, default=usual.max_bytes, metavar="N",
        help=f"bytes of the largest file, sent and after unpacking (default {usual.max_bytes >> 20} MiB)")  # fmt: skip
    add("--user-agent", default=usual.user_agent, metavar="TEXT",
        help="who you are and where to reach you: 'mybot/1.0 (+https://…)' (default %(default)s)")  # fmt: skip
    add("--ignore-robots-txt", action="store_true", help="for your own hosts only")
    add("--opt-out", metavar="A,B", default=",".join(usual.opt_out_directives),
        help="refuse pictures whose X-Robots-Tag says one of these, or that reserve text and data mining"
             " (tdm-reservation) (default %(default)s; '' to refuse none)")  # fmt: skip
    add("--allow-network", action="append", default=[], metavar="CIDR",
        help="connect to these addresses (or `localhost`) although they are not public; may be repeated")  # fmt: skip
    add("--block-domains", type=path_argument, metavar="FILE",
        help="refuse these domains and all below them, one a line")  # fmt: skip
    add("--ca-file", type=path_argument, metavar="FILE",
        help="trust these certificates (PEM) in place of the usual ones")  # fmt: skip
    add("--resolve", action="append", default=[], metavar="HOST:PORT:ADDRESS",
        help="use this address in place of DNS; may be repeated")  # fmt: skip


def _add_running(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_engine(group, "worker processes")
    add("--retry-failed", metavar="REASONS",
        help="try these failures again, in shards that are done: `all`, or timeout,http_503 …;"
             " host_given_up is always tried again")  # fmt: skip
    add("--wandb", metavar="PROJECT",
        help="send the numbers of the progress line to this project (WANDB_MODE is obeyed)")  # fmt: skip


def _options(chosen: argparse.Namespace) -> BuildOptions:
    from diptych_shards.shard_build.options import BuildOptions
    from diptych_shards.shard_build.shard_files import OutputOptions

    return BuildOptions(
        pictures=_picture_options(chosen),
        output=OutputOptions(
            rows_per_shard=chosen.rows_per_shard,
            shard_digits=chosen.shard_digits,
            compute_hash=chosen.compute_hash,
        ),
        spread_rows=not chosen.keep_order,
        fetch=_fetch_options(chosen),
        blocked_sha256=frozenset(_digests(chosen.block_sha256)),
        resolve=tuple(chosen.resolve),
    )


def _picture_options(chosen: argparse.Namespace) -> PictureOptions:
    from dataclasses import replace

    from diptych_shards.pictures.picture import PictureOptions, for_training

    options = PictureOptions() if chosen.for_training is None else for_training(chosen.for_training)
    given = {
        name: getattr(chosen, name)
        for name in ("image_size", "resize_mode", "encode_format", "encode_quality")
        if getattr(chosen, name) is not None
    }
    if chosen.resize_only_if_bigger:
        given["resize_only_if_bigger"] = True
    if chosen.for_training is not None and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--for-training decides what {names} would; leave the one or the other out")
    return replace(
        options,
        **given,
        skip_reencode=chosen.skip_reencode,
        min_image_size=chosen.min_image_size,
        max_image_area=chosen.max_image_area,
        max_aspect_ratio=chosen.max_aspect_ratio,
    )


def _fetch_options(chosen: argparse.Namespace) -> FetchOptions:
    from diptych_shards.fetch.options import FetchOptions
    from diptych_shards.fetch.url import read_domains

    return FetchOptions(
        user_agent=chosen.user_agent,
        timeout_seconds=chosen.timeout,
        connect_timeout_seconds=min(chosen.connect_timeout, chosen.timeout),
        max_bytes=chosen.max_bytes,
        retries=chosen.retries,
        in_flight=chosen.in_flight,
        per_host=chosen.per_host,
        allow_networks=tuple(chosen.allow_network),
        ca_file=None if chosen.ca_file is None else str(chosen.ca_file),
        respect_robots_txt=not chosen.ignore_robots_txt,
        opt_out_directives=tuple(filter(None, chosen.opt_out.split(","))),
        blocked_domains=read_domains(chosen.block_domains) if chosen.block_domains else frozenset(),
    )


def _reasons(text: str) -> frozenset[str]:
    """Read a comma-separated list of reasons, by their names in the report; `all` means every reason."""
    from diptych.data.caption_files import CAPTION_REASONS
    from diptych.data.picture_safety import PictureReason
    from diptych.terminal import unknown_word
    from diptych_shards.fetch.outcome import FetchReason

    known = ["all", *(reason.value for kind in (FetchReason, PictureReason) for reason in kind)]
    known += ["hash_mismatch", "blocked_picture", "decoder_crashed", *CAPTION_REASONS]
    reasons = frozenset(filter(None, map(str.strip, text.split(","))))
    for reason in sorted(reasons):
        if reason not in known and not re.fullmatch("http_[0-9]{3}", reason):
            status = re.search("[0-9]{3}$", reason)
            known.insert(1, f"http_{status[0] if status else 'NNN'}")
            raise UserError(f"--retry-failed: {unknown_word('reason', reason, known)}")
    return reasons


def _digests(path: Path | None) -> list[str]:
    """Read the sha256 digests in a file, one a line."""
    if path is None:
        return []
    expected = "sha256 digests of 64 hex digits"
    text = read_text(path, f"name a file of {expected}, one a line")
    lines = [line.strip().lower() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch("[0-9a-f]{64}", line):
            raise UserError(f"{path}: line {number} is {shown(line)!r}; expected {expected}")
    return lines


def _malformed(malformed: Malformed) -> str:
    return "\n".join(
        f"  {number:>11,}  {reason}, for example {shown(malformed.examples[reason])}"
        for reason, number in malformed.counts.most_common()
    )


def _way_out(outcomes: Counter[str]) -> str:
    """Describe what to do if nothing was stored."""
    from diptych.data.caption_files import CAPTION_REASONS
    from diptych_shards.fetch.outcome import FetchReason

    refused = FetchReason.ADDRESS_NOT_PUBLIC.value
    if outcomes[refused]:
        networks = "--allow-network localhost (or another network of yours, such as 10.1.0.0/16)"
        return f"To fetch from such addresses, add {networks} and --retry-failed {refused}"
    if outcomes.keys() <= set(CAPTION_REASONS):
        return "Name the column of captions with --caption-column, and another folder"
    return "Correct what caused them, then add --retry-failed all: without it, finished shards are not tried again"


def _table(outcomes: Counter[str]) -> str:
    total = outcomes.total()
    return "\n".join(f"  {n:>11,}  {percent(n, total):>7}  {reason}" for reason, n in outcomes.most_common())
