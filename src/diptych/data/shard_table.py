"""Read the member table of a shard from its index file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from diptych.data.shard_index_file import (
    ALLOWED_SUFFIXES,
    FOLDER_LIST,
    MEMBER_ROW,
    SAMPLE_ROW,
    Member,
    Sample,
    Shard,
    ShardError,
    ShardHeader,
    index_path,
    read_header,
)
from diptych.terminal import shown


def _read_table(shard: Shard) -> tuple[ShardHeader, bytes]:
    with open(index_path(shard.path), "rb") as file:
        header = read_header(file, shard.path)
        body = file.read()
    if header.sha256 != shard.sha256 or header.samples != shard.samples:
        folder = shown(shard.path.parent)
        raise ShardError(f"{shown(shard.path)} was indexed again since it was opened, or listed in {FOLDER_LIST}; "
                         f"`diptych-shards index {folder}` writes that again, then open it again")  # fmt: skip
    if xxhash.xxh3_64_hexdigest(body) != header.table_xxh3:
        raise ShardError(f"{shown(index_path(shard.path))} is damaged; delete it to index the tar again")
    return header, body


class Table:
    """The samples of one shard, as its index file holds them."""

    def __init__(self, shard: Shard):
        try:
            header, body = _read_table(shard)
        except (ShardError, OSError):
            if shard.origin is None:
                raise
            shard.origin.cache.fetch_index(shard)
            header, body = _read_table(shard)
        members_at = header.samples * SAMPLE_ROW.itemsize
        keys_at = members_at + header.members * MEMBER_ROW.itemsize
        self.shard = shard
        self.num_bytes = len(body)
        self._samples = np.frombuffer(body, SAMPLE_ROW, header.samples)
        self._members = np.frombuffer(body, MEMBER_ROW, header.members, members_at)
        self._keys = body[keys_at:]

    def hashes(self, suffixes: Sequence[str]) -> np.ndarray:
        """u64: the xxh3-64 of all members that have one of the suffixes."""
        numbers = [ALLOWED_SUFFIXES.index(suffix) for suffix in suffixes]
        return self._members["xxh3"][np.isin(self._members["suffix"], numbers)]

    def keys(self) -> list[str]:
        ends = self._samples["key_end"].tolist()
        return [self._keys[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def stretches(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u64: where the members of each of the rows start in the tar, and how many bytes they take."""
        ends = self._samples["member_end"][rows]
        first = self._members[np.where(rows > 0, self._samples["member_end"][rows - 1], 0)]
        last = self._members[ends - 1]
        return first["offset"], last["offset"] + last["size"] - first["offset"]

    def sample(self, row: int) -> Sample:
        if not 0 <= row < len(self._samples):
            raise IndexError(f"row {row} of a shard of {len(self._samples)} samples")
        key_start, member_start = self._samples[row - 1].item() if row else (0, 0)
        key_end, member_end = self._samples[row].item()
        rows = self._members[member_start:member_end].tolist()
        members = tuple(Member(ALLOWED_SUFFIXES[suffix], offset, size, xxh3) for suffix, offset, size, xxh3 in rows)
        return Sample(self.shard, self._keys[key_start:key_end].decode(), members)
