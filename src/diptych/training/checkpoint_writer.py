"""Write the files of a rank's share of a checkpoint, and complete checkpoints; `writing_service` is the process.

Every rank's process writes and hashes the files that the memory of its rank fills. Then rank 0's process writes the
files of whose tensors each rank had a part, then the manifest, and renames the folder. This imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diptych.checkpoint_folder import (
    EVALUATION,
    MANIFEST,
    PARTS,
    PROGRESS,
    CheckpointError,
    describe,
    keep_newest,
    remove_checkpoint,
    remove_unfinished,
)
from diptych.files import flush
from diptych.training.writing_orders import (
    BYTES_OF,
    Commit,
    Committed,
    FilePlan,
    Part,
    Plan,
    Task,
    TensorPlan,
    Written,
)

CHUNK_BYTES = 8 << 20


class Writer:
    """Writes the files of a plan from `memory`, and completes checkpoints."""

    def __init__(self, plan: Plan, memory: memoryview):
        self.plan = plan
        self._memory = memory
        self._known_valid = set(plan.known_valid)

    def write(self, task: Task) -> Written:
        """Write what needs nothing of other ranks.

        Raises:
            OSError: it cannot be written; this rank's files are removed again.
        """
        unfinished = self._unfinished(task)
        files = {}
        try:
            for name, file in self.plan.files.items():
                if file.is_complete:
                    files[name] = self._write_tensors(unfinished / name, file)
            for name, text in {**self.plan.texts, **task.texts}.items():
                files[name] = _write_text(unfinished / name, text)
        except OSError:
            self._remove_ours(unfinished)
            raise
        return Written({name: each for name, each in files.items() if not name.startswith(f"{PARTS}/")})

    def commit(self, task: Task, ours: Written, commit: Commit) -> Committed:
        """Complete the checkpoint. It can be repeated, also by another process if this one was killed in between.

        Raises:
            OSError: it cannot be written; what the ranks have written before stays.
            CheckpointError: a file of another rank is not in the folder.
        """
        unfinished, final = self._unfinished(task), self.plan.folder / task.name
        files = {**commit.files, **ours.files}
        if _lists(final, files):
            return self._committed(task, files)
        _refuse_missing(unfinished, commit.files)
        incomplete = {name: file for name, file in self.plan.files.items() if not file.is_complete}
        if incomplete:
            theirs = _parts_of_others(unfinished / PARTS)
            for name, file in incomplete.items():
                files[name] = self._write_tensors(unfinished / name, _completed(file, theirs))
        manifest = {**commit.manifest, "files": dict(sorted(files.items()))}
        _write_text(unfinished / MANIFEST, as_json(manifest))
        for folder in {(unfinished / name).parent for name in files} | {unfinished}:
            flush(folder)
        # A step that is saved again after a resume has the same bytes; the newer replaces the older.
        if final.exists():
            remove_checkpoint(final)
        unfinished.rename(final)
        flush(self.plan.folder)
        return self._committed(task, files)

    def keep_newest(self, keep: int) -> int:
        """Remove all but the newest `keep` valid checkpoints; return how many were removed."""
        return keep_newest(self.plan.folder, keep, self._known_valid)

    def describe(self, error: OSError) -> str:
        """The reason for which a checkpoint cannot be written, and the way out."""
        folder, needed = self.plan.folder, self.plan.checkpoint_bytes
        needs = f"a checkpoint takes {_megabytes(needed)}"
        room = f"{needs}: free as much there"
        with suppress(OSError):  # the folder may be what cannot be reached
            free = shutil.disk_usage(folder).free
            room = f"{needs} and {_megabytes(free)} are free: free at least {_megabytes(needed - free)} there"
        way_out = {
            errno.ENOSPC: room,
            errno.EDQUOT: f"{needs}: delete files that count against the quota, or raise it",
            errno.EFBIG: f"{needs}: raise the limit on the size of files (ulimit -f)",
        }
        return (
            f"{os.strerror(error.errno or errno.EIO)} ({folder}); {way_out.get(error.errno or 0, 'make it writable')}"
        )

    def _committed(self, task: Task, files: Mapping[str, Mapping[str, Any]]) -> Committed:
        """Remove what is needed no more once the checkpoint has its name."""
        final = self.plan.folder / task.name
        remove_unfinished(self.plan.folder)
        self._known_valid.add(final)
        return Committed(task.name, sum(int(each["bytes"]) for each in files.values()))

    def _unfinished(self, task: Task) -> Path:
        return self.plan.folder / f"{task.name}.partial"

    def _write_tensors(self, path: Path, file: FilePlan) -> dict[str, Any]:
        """Write a safetensors file durably, and hash it meanwhile; its size and hash."""
        names = in_file_order(file.tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as out:
            for chunk in self._chunks(header_of(file), [file.tensors[name] for name in names]):
                digest.update(chunk)
                out.write(chunk)
                size += len(chunk)
            out.flush()
            os.fsync(out.fileno())
        return {"bytes": size, "sha256": digest.hexdigest()}

    def _chunks(self, header: bytes, tensors: list[TensorPlan]) -> Iterator[bytes | memoryview]:
        yield header
        for tensor in tensors:
            for part in sorted(tensor.parts, key=lambda part: part.start):
                if part.file is not None:
                    yield from _read(part)
                    continue
                stop = part.offset + part.num_bytes
                for first in range(part.offset, stop, CHUNK_BYTES):
                    yield self._memory[first : min(first + CHUNK_BYTES, stop)]

    def _remove_ours(self, unfinished: Path) -> None:
        """Remove this rank's files, and the folders if they are empty then: they take room on a full disk."""
        for name in (*self.plan.files, *self.plan.texts, PROGRESS, EVALUATION, MANIFEST):
            with suppress(OSError):
                (unfinished / name).unlink()
        for folder in (*(path for path in unfinished.glob("*") if path.is_dir()), unfinished):
            with suppress(OSError):
                folder.rmdir()


def header_of(file: FilePlan) -> bytes:
    """The header of a safetensors file, as its library writes it."""
    described: dict[str, Any] = {"__metadata__": dict(file.metadata)}
    first = 0
    for name in in_file_order(file.tensors):
        tensor = file.tensors[name]
        described[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [first, first + tensor.num_bytes],
        }
        first += tensor.num_bytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def in_file_order(tensors: Mapping[str, TensorPlan]) -> list[str]:
    """Names in the order that keeps each tensor aligned: largest elements first."""
    return sorted(tensors, key=lambda name: (-BYTES_OF[tensors[name].dtype], name))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _parts_of_others(folder: Path) -> dict[str, list[Part]]:
    """`KIND.NAME` → the parts of this tensor that the other ranks have left in the folder."""
    found: dict[str, list[Part]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        starts = json.loads(header.pop("__metadata__")["starts"])
        for key, described in header.items():
            first, stop = described["data_offsets"]
            part = Part(starts[key.partition(".")[2]], 8 + size + first, stop - first, path)
            found.setdefault(key, []).append(part)
    return found


def _completed(file: FilePlan, theirs: Mapping[str, list[Part]]) -> FilePlan:
    tensors = {}
    for name, tensor in file.tensors.items():
        parts = (*tensor.parts, *(theirs.get(f"{file.kind}.{name}", ())))
        tensors[name] = TensorPlan(
            tensor.dtype, tensor.shape, parts if len(tensor.parts) < len(parts) else tensor.parts
        )
    completed = FilePlan(tensors, file.kind, file.metadata)
    if not completed.is_complete:
        raise CheckpointError(f"parts of {file.kind}/ are missing; put run_dir on a disk that all machines share")
    return completed


def _lists(checkpoint: Path, files: Mapping[str, Any]) -> bool:
    """Whether a folder is a checkpoint that was completed with these files; False if that cannot be read."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        return all(listed.get(name) == described for name, described in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _refuse_missing(unfinished: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckpointError if this machine does not see what the other ranks have written."""
    for name, described in files.items():
        try:
            found = (unfinished / name).stat().st_size
        except FileNotFoundError:
            found = None
        if found != described["bytes"]:
            raise CheckpointError(
                f"{unfinished / name}: has {found} bytes here, its rank has written {described['bytes']}; put run_dir "
                f"on a disk that all machines share"
            )


def _read(part: Part) -> Iterator[bytes]:
    assert part.file is not None
    with part.file.open("rb", buffering=0) as file:
        file.seek(part.offset)
        left = part.num_bytes
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(part.file))
            left -= len(chunk)
            yield chunk


def _write_text(path: Path, text: str) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return describe(path)


def _megabytes(num_bytes: int) -> str:
    return f"{max(num_bytes, 0) / 1e6:,.1f} MB"
