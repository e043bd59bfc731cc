"""Many shards as arrays, and `_index/all.index`: the file that lists all shards of a folder.

The file is one JSON line, a row for each shard and the names: 5.6 MB for 100,000 shards. It repeats what their own
indexes record, so that opening a folder reads one file instead of one a shard. Writing a shard's index removes it;
`diptych-shards build`, `pack`, `select` and `index` write it when they finish.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import xxhash

from diptych.data.shard_index_file import Origin, Shard, ShardError, folder_list_path, read_shard
from diptych.data.shard_locations import indexed_tars
from diptych.files import commit_file
from diptych.remote_files import is_elsewhere
from diptych.terminal import counted, shown

if TYPE_CHECKING:
    from diptych.data.shard_cache import ShardCache

METADATA_THREADS = 32
"""A network disk answers in half a millisecond, a store in 50, and both answer many requests at once as fast as one."""

_FORMAT = "diptych-shard-list-1"
SHARD_ROW = np.dtype([("samples", "<u4"), ("num_bytes", "<u8"), ("sha256", "V32")])

ShardRow = tuple[int, int, bytes]
"""A row: samples, bytes and sha256."""

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShardList(Sequence[Shard]):
    """Shards whose numbers are in one array; a `Shard` is made when it is asked for."""

    def __init__(self, paths: Sequence[str], rows: np.ndarray, cache: ShardCache | None = None):
        """paths: of the tars, or their addresses; these need a cache. rows: SHARD_ROW[shards]."""
        self.paths = paths
        self._rows = rows
        self._cache = cache

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardList:
        shards = list(shards)
        cache = next((shard.origin.cache for shard in shards if shard.origin), None)
        return cls([shard.location for shard in shards], np.array([_row(shard) for shard in shards], SHARD_ROW), cache)

    @classmethod
    def joined(cls, parts: Sequence[ShardList], cache: ShardCache | None = None) -> ShardList:
        """All shards of the parts, one after another."""
        rows = [part._rows for part in parts]
        return cls(
            list(chain.from_iterable(p.paths for p in parts)), np.concatenate(rows or [np.empty(0, SHARD_ROW)]), cache
        )

    @classmethod
    def from_bytes(cls, data: bytes, folder: str | os.PathLike[str]) -> ShardList:
        """The shards that the bytes of an `all.index` list, as files of `folder`.

        Raises:
            ShardError: the bytes are damaged, or of a format that this version cannot read.
        """
        line, _, body = data.partition(b"\n")
        try:
            header = json.loads(line)
            if header["format"] != _FORMAT:
                raise ShardError(f"its format is {shown(header['format'])}, not {_FORMAT}")
            rows = np.frombuffer(body, SHARD_ROW, header["shards"])
            names = [name.decode("utf-8", "surrogateescape") for name in body[rows.nbytes :].split(b"\0")[:-1]]
            is_whole = len(names) == len(rows) and header["xxh3"] == xxhash.xxh3_64_hexdigest(body)
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError("it is damaged") from error
        if not is_whole:
            raise ShardError("it is damaged")
        return cls([f"{os.fspath(folder)}/{name}" for name in names], rows)

    def to_bytes(self) -> bytes:
        """The bytes of an `all.index`; of the paths it contains the names."""
        names = b"".join(os.path.basename(path).encode("utf-8", "surrogateescape") + b"\0" for path in self.paths)
        body = self._rows.tobytes() + names
        header = {"format": _FORMAT, "shards": len(self), "xxh3": xxhash.xxh3_64_hexdigest(body)}
        return json.dumps(header).encode() + b"\n" + body

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        samples, num_bytes, sha256 = self._rows[number].item()
        location, hexdigest = self.paths[number], sha256.hex()
        if self._cache is None or not is_elsewhere(location):
            return Shard(Path(location), samples, num_bytes, hexdigest)
        path = self._cache.path_of(os.path.basename(location), hexdigest)
        return Shard(path, samples, num_bytes, hexdigest, Origin(location, self._cache))

    @property
    def is_elsewhere(self) -> bool:
        """Whether some of the shards are at an address, not on this machine."""
        return any(map(is_elsewhere, self.paths))

    def rows(self) -> Iterator[tuple[str, ShardRow]]:
        """(name, (samples, bytes, sha256)) of each tar."""
        return zip(map(os.path.basename, self.paths), self._rows.tolist(), strict=True)

    @property
    def samples(self) -> np.ndarray:
        """i64: how many samples each shard has."""
        return self._rows["samples"].astype(np.int64)

    @property
    def num_bytes(self) -> np.ndarray:
        """i64: the size of each tar."""
        return self._rows["num_bytes"].astype(np.int64)


def read_folder_list(folder: Path) -> ShardList | None:
    """The shards that a folder's `all.index` lists; None if it has none that can be used."""
    path = folder_list_path(folder)
    try:
        return ShardList.from_bytes(path.read_bytes(), folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ShardError as error:
        logger.warning("%s is not used (%s); `diptych-shards index %s` writes it again", path, error, shown(folder))
        return None


def write_folder_list(folder: Path) -> None:
    """Write the `all.index` of a folder from the indexes of its tars, if the tars' list is not what it contains."""
    names = sorted(name for name in indexed_tars(folder) if (folder / name).exists())
    data = ShardList.of(at_once(read_shard, [folder / name for name in names])).to_bytes()
    path = folder_list_path(folder)
    if not names:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != data:
        commit_file(path, data)


def read_shards(tars: Sequence[Path], index_shard: Callable[[Path], Shard] | None) -> ShardList:
    """The shards of tars, from the lists of their folders as far as these hold, else from the tars' own indexes.

    A list holds for a tar that has the size it gives, and still has an index of its own.

    index_shard: is called for a tar that has no index; None: such a tar is refused.

    Raises:
        ShardError: an index is damaged, a tar has another size than its index says, or a tar without index is refused.
    """
    paths = list(map(os.fspath, tars))
    places = list(map(os.path.split, paths))
    folders = {folder for folder, _ in places}
    indexed = {folder: indexed_tars(Path(folder)) for folder in folders}
    # Of a single tar, its own index is the shorter file.
    lists = {folder: read_folder_list(Path(folder)) if len(tars) > 1 else None for folder in folders}
    rows = {folder: dict(shards.rows()) if shards else {} for folder, shards in lists.items()}
    has_index = [name in indexed[folder] for folder, name in places]
    found = [
        row if (row := rows[folder].get(name)) and row[1] == size and has else None
        for (folder, name), size, has in zip(places, at_once(_size, paths), has_index, strict=True)
    ]
    missing = [(tar, has) for tar, has, row in zip(tars, has_index, found, strict=True) if row is None]
    read = iter(at_once(read_shard, [tar for tar, has in missing if has]))
    foreign = [tar for tar, has in missing if not has]
    if foreign and index_shard is None:
        folder = shown(foreign[0].parent)
        raise ShardError(
            f"{len(foreign):,} of {counted(len(tars), 'shard')} have no index, such as {shown(foreign[0])}, and all "
            f"ranks would wait while rank 0 reads them; run `diptych-shards index {folder}` first"
        )
    indexed_now = map(index_shard, foreign) if index_shard else iter(())
    made = (next(read if has else indexed_now) for _, has in missing)
    filled = [row or _row(next(made)) for row in found]
    return ShardList(paths, np.array(filled, SHARD_ROW))


def _row(shard: Shard) -> ShardRow:
    return shard.samples, shard.num_bytes, bytes.fromhex(shard.sha256)


def _size(tar: str) -> int:
    """The size of a tar; -1 if it cannot be looked at, which is reported when it is opened."""
    try:
        return os.stat(tar).st_size
    except OSError:
        return -1


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function that waits for a disk with each item, in METADATA_THREADS threads; results in order."""
    size = max(64, -(-len(items) // METADATA_THREADS))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(METADATA_THREADS) as threads:
        return list(chain.from_iterable(threads.map(lambda part: [function(item) for item in part], parts)))
