"""Load batches from shards with a webdataset pipeline; `batches` shows the whole of it.

Members are read by offset in the order that `order.py` plans, so there is no shuffle buffer and no worker state: worker
w of n builds the pieces p ≡ w (mod n), and any number of ranks and workers gives the same batches. A piece is a whole
batch, or a part of a large one that is small enough for shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, takewhile
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys

from diptych.config.schema import DataConfig, ImageTowerConfig
from diptych.data.augment import augment
from diptych.data.batch import Batch, Reject
from diptych.data.captions import all_captions, caption_of, drawn_caption
from diptych.data.draws import Draws, hash_of, hashes
from diptych.data.mixture import Mixture
from diptych.data.order import Order
from diptych.data.picture_pixels import open_pixels
from diptych.data.picture_safety import PictureError, PictureReason
from diptych.data.shard_cache import OPEN_FILES
from diptych.data.shard_index_file import PICTURE_SUFFIXES, ShardError, UnreachableShardError
from diptych.data.shards import ShardIndex
from diptych.data.shards_ahead import SAMPLES_AHEAD, shards_ahead
from diptych.data.source_order import Rows
from diptych.data.tokenizer import Tokenizer
from diptych.errors import OneRankError
from diptych.machine import allow_open_files

MAX_PIECE_ROWS = 512
"""512 pictures of 224 pixels take 77 MB. If a batch of 32,768 pairs were one piece, the pieces that a worker holds
ready would take 10 GB of /dev/shm."""
PREFETCHED_PIECES = 2
"""Finished pieces that a worker holds ready."""
LAST_PIECE_SECONDS = 5
"""How long the loader waits when it is closed for the unused piece that is being built."""
MAX_FILLERS = 100
"""How many samples are tried in place of a rejected one before the shards are considered unusable."""
REASONS = ("damaged_shard", "no_caption", "no_picture", *(reason.value for reason in PictureReason))
"""The reasons for which a sample can be rejected."""


@dataclass(frozen=True)
class Picked:
    """A sample's place in the run: its number in the index, the epoch, and the batch."""

    sample: int
    epoch: int
    batch_number: int


@dataclass(frozen=True)
class Row:
    """A decoded sample; a rejected one has a `reason` instead of content."""

    picked: Picked
    key: str
    shard: str
    image: np.ndarray | None = None
    caption: str = ""
    reason: str | None = None


class Decoder:
    """Turns a sample's encoded members into a Row, for one data config and image tower."""

    def __init__(self, config: DataConfig, image: ImageTowerConfig, seed: int, mixture: Mixture | None = None):
        self._config = config
        self._image = image
        self.image_size = image.image_size
        self._seed = seed
        self._mixture = mixture

    def __call__(self, members: dict[str, Any]) -> Row:
        """Decode one sample; a fault of the sample becomes the row's reason, never an exception."""
        picked: Picked = members["picked"]
        row = partial(Row, picked, members["__key__"], members["__url__"])
        if "damaged" in members:
            return row(reason="damaged_shard")
        caption = self._caption(members, picked)
        if not caption:
            return row(reason="no_caption")
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
        if suffix is None:
            return row(reason="no_picture")
        try:
            pixels = open_pixels(members[suffix])
        except PictureError as error:
            return row(reason=error.reason.value)
        return row(image=self._augmented(pixels, picked), caption=caption)

    def _caption(self, members: dict[str, Any], picked: Picked) -> str:
        """Choose one of a picture's captions by seed, epoch and sample, so that each epoch may use another one."""
        fields = self._mixture.captions_of(picked.sample) if self._mixture is not None else None
        if fields is not None:
            return drawn_caption(members, fields, Draws(hash_of(picked.sample, self._seed, picked.epoch, 4)))
        caption = caption_of(members)
        several = all_captions(caption, members.get("json", b"")) or (caption,)
        return several[hash_of(picked.sample, self._seed, picked.epoch, 3) % len(several)]

    def _augmented(self, pixels: np.ndarray, picked: Picked) -> np.ndarray:
        """Augment at random by seed, epoch and sample: the same on any rank and after any resume."""
        draws = Draws(hash_of(picked.sample, self._seed, picked.epoch, 1))
        return augment(pixels, self._config, self._image, draws)


class SampleReader(IterableDataset[dict[str, Any]]):
    """The planned members of this worker's batches, read by offset, checked against the index."""

    def __init__(self, index: ShardIndex, order: Order, rows: tuple[int, int], first: int, stop: int):
        self._index = index
        self._order = order
        self._rows = rows
        self._first = first
        self._stop = stop
        self._planned: tuple[int, frozenset[int]] = (-1, frozenset())

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """(batch number, start, stop) of the rows [start, stop) of each piece that this worker builds."""
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        of_a_batch = _pieces(self._rows)
        for piece in range(self._first * len(of_a_batch) + offset, self._stop * len(of_a_batch), stride):
            batch_number, place = divmod(piece, len(of_a_batch))
            yield batch_number, *of_a_batch[place]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield members as webdataset's tar expander would; `{}` ends a sample, since two samples may have one key."""
        first, last = self._rows
        pieces_ahead = SAMPLES_AHEAD // max(1, min(last - first, MAX_PIECE_ROWS))
        with shards_ahead(self._index, self._shards_of_pieces(), pieces_ahead) as begin_piece:
            for batch_number, planned in self._announced():
                begin_piece()
                for sample, epoch in zip(planned.samples.tolist(), planned.epochs.tolist(), strict=True):
                    yield from members_of(self._index, Picked(sample, epoch, batch_number))
                    yield {}

    def _shards_of_pieces(self) -> Iterator[list[int]]:
        """The shards that each piece of this worker needs, in the order in which it reads them."""
        order = copy(self._order)  # whose caches serve another part of the plan
        for batch_number, start, stop in self.pieces():
            shards, _ = self._index.locate_many(order.rows(batch_number, start, stop).samples)
            yield list(dict.fromkeys(shards.tolist()))

    def _announced(self) -> Iterator[tuple[int, Rows]]:
        """Batch number and rows of each piece; the disk fetches the next piece's samples while this one is decoded."""
        ahead: list[tuple[int, Rows]] = []
        for batch_number, start, stop in self.pieces():
            ahead.append((batch_number, self._order.rows(batch_number, start, stop)))
            self._index.announce(ahead[-1][1].samples)
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead

    def take_counts(self) -> Counter[str]:
        """What was read since the last call."""
        taken = Counter(self._index.counts_of_reads)
        self._index.counts_of_reads.clear()
        return taken

    def replacement(self, picked: Picked, attempt: int) -> dict[str, Any]:
        """The members of the sample that `filler` chooses."""
        return read_sample(self._index, self.filler(picked, attempt))

    def filler(self, picked: Picked, attempt: int) -> Picked:
        """Choose a sample of the same source to replace a rejected one: the same on all ranks, outside the batch if
        possible."""
        batch = self._samples_of(picked.batch_number)
        keys = np.arange(attempt * MAX_FILLERS, (attempt + 1) * MAX_FILLERS)
        first, stop = self._order.source_of(picked.sample)
        drawn = hashes(keys, picked.sample, picked.batch_number, 2) % np.uint64(stop - first) + np.uint64(first)
        outside = [sample for sample in drawn.tolist() if sample not in batch]
        return Picked(outside[0] if outside else int(drawn[0]), picked.epoch, picked.batch_number)

    def _samples_of(self, batch_number: int) -> frozenset[int]:
        """The samples of a global batch; those of the last one asked for are kept, since rejects come together."""
        if self._planned[0] != batch_number:
            self._planned = batch_number, frozenset(self._order.rows(batch_number).samples.tolist())
        return self._planned[1]


def members_of(index: ShardIndex, picked: Picked) -> Iterator[dict[str, Any]]:
    """Yield the members of one sample, after an extra member `picked` with its place in the run."""
    shard_number, row = index.locate(picked.sample)
    key = f"row-{row}"  # used if even the key cannot be read
    try:
        sample = index.sample(shard_number, row)
        key = sample.key
        parts: dict[str, Any] = dict(index.read(sample))
    except UnreachableShardError:
        raise
    except (ShardError, OSError) as error:
        parts = {"damaged": str(error)}
    shard = os.path.basename(index.shards.paths[shard_number])
    for suffix, data in {"picked": picked, **parts}.items():
        yield {"fname": f"{key}.{suffix}", "data": data, "__url__": shard}


def read_sample(index: ShardIndex, picked: Picked) -> dict[str, Any]:
    """All members of one sample, as a Decoder takes them."""
    members: dict[str, Any] = next(group_by_keys(members_of(index, picked)))
    return members


def _pieces(rows: tuple[int, int]) -> list[tuple[int, int]]:
    """Split the rows of a batch into the fewest pieces of at most MAX_PIECE_ROWS, of nearly equal size."""
    start, stop = rows
    number = -(-(stop - start) // MAX_PIECE_ROWS)
    return list(pairwise(start + piece * (stop - start) // number for piece in range(number + 1)))


class RowsIntoPieces:
    """Collects rows into pieces of batches; replaces rejected samples, and records them as the piece's rejects."""

    def __init__(self, source: SampleReader, decode: Decoder, tokenizer: Tokenizer, context_length: int):
        self._source = source
        self._decode = decode
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._image_size = decode.image_size

    def __call__(self, rows: Iterator[Row]) -> Iterator[Batch]:
        for _, start, stop in self._source.pieces():
            yield self._piece(islice(rows, stop - start), stop - start)

    def _piece(self, rows: Iterator[Row], num_rows: int) -> Batch:
        rejects: list[Reject] = []
        captions: list[str] = []
        samples = np.empty(num_rows, dtype=np.int64)
        images = np.empty((num_rows, 3, self._image_size, self._image_size), dtype=np.uint8)
        for place, row in enumerate(rows):
            filled = self._filled(row, rejects)
            assert filled.image is not None
            images[place] = filled.image
            captions.append(filled.caption)
            samples[place] = filled.picked.sample
        tokens, lengths = self._tokenizer(captions, self._context_length)
        as_tensor = torch.from_numpy
        reads = self._source.take_counts()
        return Batch(as_tensor(images), as_tensor(tokens), as_tensor(lengths), samples, tuple(rejects), reads)

    def _filled(self, row: Row, rejects: list[Reject]) -> Row:
        planned = row.picked
        reasons: Counter[str] = Counter()
        for attempt in range(MAX_FILLERS):
            if row.reason is None:
                return row
            if attempt == 0:
                rejects.append(Reject(planned.sample, row.shard, row.key, row.reason))
            reasons[row.reason] += 1
            row = self._decode(self._source.replacement(planned, attempt))
        table = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
        raise ShardError(
            f"{row.shard}: sample {row.key} was rejected ({row.reason}), and so were {MAX_FILLERS - 1} others that "
            f"were drawn in its place ({table}); the shards contain next to nothing that can be trained on"
        )


def batches(
    index: ShardIndex,
    order: Order,
    decode: Decoder,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    rows: tuple[int, int],
    first: int,
    stop: int,
    workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the rows [start, stop) given by `rows` of each of the global batches [first, stop).

    workers: the number of loader processes; 0 loads in this process. They start now, not with the first batch. Closing
        the generator ends them.
    """
    allow_open_files(OPEN_FILES)
    source = SampleReader(index, order, rows, first, stop)
    pipeline = wds.DataPipeline(
        source,
        group_by_keys,
        wds.map(decode),
        RowsIntoPieces(source, decode, tokenizer, context_length),
        _errors_as_items,
    )
    others = set(multiprocessing.active_children())
    loader: DataLoader[Batch] = DataLoader(  # wds.WebLoader starts its processes with the first batch
        pipeline,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_PIECES if workers else None,
        worker_init_fn=_ignore_signals if workers else None,
        pin_memory=pin_memory and len(_pieces(rows)) == 1,
    )
    started = _whole_batches(loader, others, workers, rows, pin_memory)
    next(started)  # starts the processes
    return started


def _whole_batches(
    loader: DataLoader[Batch], others: set[Any], workers: int, rows: tuple[int, int], pin_memory: bool
) -> Generator[Any, None, None]:
    """Start the loader processes and yield None, then yield the batches.

    others: the processes of this one that were started before.
    """
    pieces = _raise_errors(iter(loader))
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        yield None
        yield from pieces if len(_pieces(rows)) == 1 else _joined(pieces, rows, pin_memory, thread)
    except (ConnectionError, EOFError) as error:  # a loader process died while it sent a batch
        raise _killed("a loader process", workers) from error
    finally:
        # Loader processes ignore SIGTERM, so that they live until a stop has saved; they must be killed here.
        with _expect_process_ends():
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
                process.join()
            thread.shutdown()
            pieces.close()


def _joined(
    pieces: Iterator[Batch], rows: tuple[int, int], pin_memory: bool, thread: ThreadPoolExecutor
) -> Iterator[Batch]:
    """Join pieces into whole batches; while one is used, the thread joins the next, so few pieces wait in memory."""
    sizes = [stop - start for start, stop in _pieces(rows)]
    is_over = threading.Event()

    def join() -> Batch | None:
        wanted = takewhile(lambda _: not is_over.is_set(), islice(pieces, len(sizes)))
        return Batch.joined(wanted, sum(sizes), pin_memory=pin_memory)

    coming = thread.submit(join)
    try:
        while (batch := coming.result()) is not None:
            coming = thread.submit(join)
            yield batch
    finally:
        # If the loader processes were killed while the thread waits for a piece, it would wait five seconds.
        is_over.set()
        wait([coming], LAST_PIECE_SECONDS)


@contextmanager
def explain_killed_loaders(workers: int) -> Iterator[None]:
    """Turn the error of torch's SIGCHLD handler, which may be raised anywhere in the block, into one line.

    Raises:
        OneRankError: a loader process was killed or died.
    """
    try:
        yield
    except RuntimeError as error:
        killed = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if killed is None:
            raise
        raise _killed(f"loader process {killed.group(1)}", workers) from error


def _killed(who: str, workers: int) -> OneRankError:
    return OneRankError(
        f"{who} was killed or died, as happens when memory or /dev/shm is full; give the machine more, or set "
        f"machine.loader_workers below {workers}; the same command goes on from the last checkpoint"
    )


def _errors_as_items(batches: Iterator[Batch]) -> Iterator[Batch | ShardError]:
    """Yield a ShardError as the last item: raised in a loader process, its message would be buried in a traceback."""
    try:
        yield from batches
    except ShardError as error:
        yield error


def _raise_errors(batches: Iterator[Batch | ShardError]) -> Generator[Batch, None, None]:
    for batch in batches:
        if isinstance(batch, ShardError):
            raise ShardError(str(batch))
        yield batch


@contextmanager
def _expect_process_ends() -> Iterator[None]:
    """Switch off torch's SIGCHLD handler during the block, since it treats the end of a loader process as a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: the rank decides when its workers end."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
