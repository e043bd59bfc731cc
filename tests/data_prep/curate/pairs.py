"""Small tables of pairs, and what curate makes of them."""

import json

import pyarrow
from pyarrow import parquet

from diptych_shards.cli import main


def write_pairs(path, pairs, *, row_group_size=50, **columns):
    """A table of (url, caption) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    urls, captions = zip(*pairs, strict=True)
    table = pyarrow.table({"url": urls, "caption": captions, **columns})
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def curate(*arguments, processes=1):
    """Run the command, with one process in this one; return its exit status."""
    return main(["curate", *map(str, arguments), "--processes", str(processes)])


def kept(out):
    """Read (url, caption) of the kept pairs, in order."""
    tables = [parquet.read_table(path) for path in sorted(out.glob("*.parquet"))]
    return [
        pair for table in tables for pair in zip(*(table[name].to_pylist() for name in ("url", "caption")), strict=True)
    ]


def report(out):
    return json.loads((out / "_index" / "report.json").read_text(encoding="utf-8"))


def files(folder):
    """Each file's bytes by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
