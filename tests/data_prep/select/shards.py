"""Small shards for the tests of this folder, as `build` and `pack` leave them."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from diptych.data.shard_writer import ShardWriter
from tests.data_prep.made_pictures import encoded


def photograph(seed, side=64):
    """A picture of its own: smooth, so that copies hash alike, and unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(seed, side=64, quality=95):
    return encoded(photograph(seed, side), quality=quality)


def write_shards(folder, shards, *, parquet=True, failures=0):
    """shards: a list of (picture bytes, caption, facts) for each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(shards):
        rows = []
        with ShardWriter(folder, number) as writer:
            for row, (picture, caption, facts) in enumerate(samples):
                key = f"{number:05d}{row:04d}"
                known = {"caption": caption, "key": key, "status": "success", **facts}
                rows.append(known)
                suffix = "png" if picture[:4] == b"\x89PNG" else "jpg"
                members = {suffix: picture, "txt": caption.encode(), "json": json.dumps(known).encode()}
                writer.add(key, members)
        if parquet:
            failed = [{"key": f"{number:05d}{9000 + n}", "status": "failed_to_download"} for n in range(failures)]
            names = list(dict.fromkeys(name for row in rows for name in row))
            # Failures are between the others, as in a crawl.
            mixed = [*failed, *rows]
            table = pyarrow.table({name: [row.get(name) for row in mixed] for name in names})
            pyarrow.parquet.write_table(table, folder / f"{number:05d}.parquet")
    return folder


def verdict(folder, name):
    """(kept, reason, duplicate of) by key."""
    table = pyarrow.parquet.read_table(folder / "_index" / "select" / f"{name}.parquet")
    return {row["key"]: (row["kept"], row["reason"], row["duplicate_of"]) for row in table.to_pylist()}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
