"""Check shards byte for byte against their index, and against what a build recorded of them."""

from __future__ import annotations

import json
from pathlib import Path

from diptych.data.shard_index_file import INDEX_FOLDER, Shard, ShardError, index_path
from diptych.data.shard_table import Table
from diptych.data.shards import ShardIndex, open_index
from diptych.files import check_folder, sha256_of
from diptych.terminal import counted, shown
from diptych_shards.run.out_folder import read_state
from diptych_shards.run.progress import Progress
from diptych_shards.shard_build.check import BuildCheck

_MAKERS = ("build", "pack", "select")
"""Commands that leave a file of their name in `_index`; the same command again rewrites what is not whole."""


def verify(folder: Path) -> ShardIndex:
    """Read every byte of every shard of a folder; the result is the folder's index.

    Raises:
        ShardError: at the first shard that is missing, incomplete or changed; with its first broken member.
        UserError: it is not a folder, or the state file of the command that made the shards is damaged.
    """
    check_folder(folder, "shards")
    for tar in sorted(folder.glob("*.tar")):
        if not (folder / INDEX_FOLDER / f"{tar.name}.index").exists():
            maker = _maker(folder)
            way_out = (
                f"it is incomplete; start the {maker} again"
                if maker
                else f"`diptych-shards index {shown(folder)}` writes that of shards that another tool made"
            )
            raise ShardError(f"{shown(tar)} has no index: {way_out}")
    _check_sizes(folder)
    index = _open(folder)
    _check_pack(folder, index)
    build = BuildCheck.of(folder, index)
    progress = Progress(len(index), "sample")
    try:
        for number, shard in enumerate(index.shards):
            _verify_shard(index, number, shard)
            if build is not None:
                build.check_shard(index, number)
            progress.add(shard.samples)
            progress.shard_is_done(shown(shard.name))
    finally:
        progress.close()
    return index


def _maker(folder: Path) -> str | None:
    """The command of ours that made these shards; None if none did."""
    return next((name for name in _MAKERS if (folder / INDEX_FOLDER / f"{name}.json").exists()), None)


def _check_sizes(folder: Path) -> None:
    """For shards that can be rebuilt: check that each tar exists and has its indexed size.

    Raises:
        ShardError: a tar is missing or has another size; names the first member that is cut off.
    """
    maker = _maker(folder)
    for index in sorted((folder / INDEX_FOLDER).glob("*.tar.index")) if maker else ():
        tar = folder / index.name.removesuffix(".index")
        what = _misfit(tar)
        if what is not None:
            raise ShardError(f"{shown(tar)} {what}; start the {maker} again to rewrite the shard")


def _misfit(tar: Path) -> str | None:
    """Describe how a tar's size differs from its index; None if it does not differ, or the index is damaged."""
    try:
        with open(index_path(tar), "rb") as file:
            expected = int(json.loads(file.readline())["bytes"])
    except (ValueError, KeyError, TypeError):
        return None
    if not tar.exists():
        return "is missing"
    size = tar.stat().st_size
    if size == expected:
        return None
    cut = _first_cut_member(tar)
    whole = "" if cut is None else f": it is truncated, {cut}"
    return f"has {size:,} bytes, its index says {expected:,}{whole}"


def _open(folder: Path) -> ShardIndex:
    """Open the index; if a tar was truncated, the error names the first member that is not whole."""
    names = {path.name for path in (folder / INDEX_FOLDER).glob("*")}
    if "build.json" in names and not any(name.endswith(".tar.index") for name in names):
        return ShardIndex(())  # a table without rows; `BuildCheck` checks that it was one
    try:
        return open_index(folder)
    except ShardError as error:
        for tar in sorted(folder.glob("*.tar")):
            if (cut := _first_cut_member(tar)) is not None:
                raise ShardError(f"{error} ({cut})") from error
        raise


def _first_cut_member(tar: Path) -> str | None:
    """Name the first member of a truncated tar that is not whole; None if the tar has its indexed size."""
    size = tar.stat().st_size
    try:
        with open(index_path(tar), "rb") as file:
            header = json.loads(file.readline())
        if size >= header["bytes"]:
            return None
        table = Table(Shard(tar, header["samples"], header["bytes"], header["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):  # the index is damaged too
        return None
    samples = (table.sample(row) for row in range(header["samples"]))
    ends = ((f"{sample.key}.{m.suffix}", m.offset + m.size) for sample in samples for m in sample.members)
    cut = next((name for name, end in ends if end > size), None)
    return "all its members are whole" if cut is None else f"the first member that is not whole is {shown(cut)}"


def _check_pack(folder: Path, index: ShardIndex) -> None:
    """For a folder that `pack` wrote: check that all of it is there."""
    try:
        state = read_state(folder / INDEX_FOLDER / "pack.json")
    except FileNotFoundError:
        return
    if not state.get("finished"):
        raise ShardError(f"the pack in {shown(folder)} has not finished; start the same command again")
    there = len(index.shards), len(index)
    if there != (state.get("shards"), state.get("packed")):
        has = f"{counted(there[0], 'shard')}, {counted(there[1], 'sample')}"
        raise ShardError(
            f"{folder} has {has}; packed were {state.get('shards')} and {state.get('packed')}; pack it again"
        )


def _verify_shard(index: ShardIndex, number: int, shard: Shard) -> None:
    for sample in index.samples(number):
        index.read(sample)
    if sha256_of(shard.path) != shard.sha256:
        raise ShardError(f"{shown(shard.path)}: the members are whole, but bytes between them are not")
