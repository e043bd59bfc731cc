import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from contextlib import closing, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.tariterators import group_by_keys

from diptych.config.schema import (
    ColourJitterConfig,
    DataConfig,
    ImageTowerConfig,
    RandomErasingConfig,
    RandomResizedCropConfig,
)
from diptych.data import loader, loader_processes, sample_reader
from diptych.data.decoder import REASONS, Decoder, Picked
from diptych.data.loader import RowsIntoPieces, batches
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.order import SampleOrder
from diptych.data.sample_reader import SampleReader, members_of
from diptych.data.shard_cache import ShardCache
from diptych.data.shard_index_file import UnreachableShardError
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import ShardError, open_index
from diptych.data.tokenizer import train_vocabulary

COUNTS = (7, 1, 12)
BATCH = 8
SIZE = 16
IMAGE = ImageTowerConfig(image_size=SIZE)


def picture(number):
    """A picture that shows its number by its level of red; it is wider than high, so that crops can differ."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[..., 0] = number * 10
    pixels[..., 1] = np.arange(40) * 6
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def shards(tmp_path):
    number = 0
    for shard, count in enumerate(COUNTS):
        with ShardWriter(tmp_path, shard) as writer:
            for _ in range(count):
                members = {"png": picture(number), "txt": f"picture number {number}".encode()}
                if number % 3 == 0:
                    members = {"png": members["png"], "json": json.dumps({"caption": members["txt"].decode()}).encode()}
                writer.add(f"{number:04d}", members)
                number += 1
    return tmp_path


TOKENIZER = train_vocabulary([f"picture number {number}" for number in range(sum(COUNTS))], 600)


def load(folder, *, rows=(0, BATCH), first=0, stop=6, workers=0, seed=3, pin_memory=False, **augmentations):
    processes = LoaderProcesses(workers)  # before the index, as in training: a fork upsets open connections to a store
    index = open_index(folder)
    order = SampleOrder(index.counts, seed=seed, global_batch_size=BATCH, shuffle_window=5)
    decode = Decoder(DataConfig(train=str(folder), **augmentations), IMAGE, seed)
    plan = {"rows": rows, "first": first, "stop": stop}
    return list(loading_of(index, order, decode, **plan, processes=processes, pin_memory=pin_memory))


def loading_of(index, order, decode, *, rows, first=0, stop, workers=0, processes=None, pin_memory=False):
    """Batches of the samples, from these loader processes, or from so many."""
    return batches(
        index,
        order,
        decode,
        TOKENIZER,
        context_length=12,
        rows=rows,
        first=first,
        stop=stop,
        processes=processes or LoaderProcesses(workers),
        pin_memory=pin_memory,
    )


def content(batch):
    return batch.images.tolist(), batch.tokens.tolist(), batch.lengths.tolist(), batch.samples.tolist()


def test_row_i_of_everything_is_one_pair(shards):
    for batch in load(shards):
        assert batch.images.shape == (BATCH, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
        assert batch.tokens.dtype == torch.int32 and batch.rejects == ()
        for row, sample in enumerate(batch.samples):
            assert batch.images[row, 0].float().mean() == pytest.approx(sample * 10, abs=1)
            said = TOKENIZER.decode(batch.tokens[row, 1 : batch.lengths[row] - 1].tolist())
            assert said.split() == ["picture", "number", *str(sample)] or said == f"picture number {sample}"


def test_loader_processes_take_one_pipeline():
    with LoaderProcesses(1) as processes:
        assert list(processes.run(["piece"])) == ["piece"]
        with pytest.raises(RuntimeError, match="one pipeline"):
            processes.run(["another"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(shards, workers):
    assert [content(b) for b in load(shards, workers=workers)] == [content(b) for b in load(shards)]


@pytest.mark.parametrize(("workers", "max_piece_rows"), [(0, BATCH), (2, BATCH), (2, 3)])
def test_a_batch_counts_the_bytes_that_were_read_for_it(shards, monkeypatch, workers, max_piece_rows):
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", max_piece_rows)
    index = open_index(shards)
    sizes = [sum(member.size for member in sample.members) for sample in index.samples()]
    for batch in load(shards, workers=workers):
        assert batch.reads == {"bytes_read": sum(sizes[sample] for sample in batch.samples)}


def test_the_pipeline_travels_to_a_process_that_was_not_forked(shards):
    index = open_index(shards)
    order = SampleOrder(index.counts, seed=3, global_batch_size=BATCH, shuffle_window=5)
    source, decode = pickle.loads(
        pickle.dumps((SampleReader(index, order, (0, BATCH), 0, 6), Decoder(DataConfig(train=str(shards)), IMAGE, 3)))
    )
    make = RowsIntoPieces(source, decode, TOKENIZER, 12)
    made = make(map(decode, group_by_keys(iter(source))))
    assert [content(b) for b in made] == [content(b) for b in load(shards)]


def test_ranks_share_the_rows_of_the_same_batches(shards):
    whole = load(shards)
    halves = load(shards, rows=(0, 4)), load(shards, rows=(4, 8), workers=2)
    for batch, one, other in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([one.images, other.images]))
        assert torch.equal(batch.tokens, torch.cat([one.tokens, other.tokens]))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("rows", [(0, BATCH), (3, BATCH)])
def test_a_large_batch_comes_in_pieces_and_is_the_same(tmp_path, monkeypatch, workers, rows):
    broken(tmp_path)
    whole = load(tmp_path, rows=rows, first=1)
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", 3)
    in_pieces = load(tmp_path, rows=rows, first=1, workers=workers)
    assert [content(b) for b in in_pieces] == [content(b) for b in whole]
    assert all(b.images.is_contiguous(memory_format=torch.channels_last) for b in (*whole, *in_pieces))
    assert [b.rejects for b in in_pieces] == [b.rejects for b in whole]
    assert sum(len(b.rejects) for b in whole) > 3


@pytest.mark.parametrize("max_piece_rows", [3, BATCH])
def test_batches_for_a_gpu_are_copied_into_pinned_memory(shards, monkeypatch, max_piece_rows):
    empty, pinned = torch.empty, []

    def without_driver(*arguments, pin_memory=False, **keywords):
        pinned.append(pin_memory)
        return empty(*arguments, **keywords)

    whole = load(shards)
    monkeypatch.setattr(torch, "empty", without_driver)
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", max_piece_rows)
    assert [content(b) for b in load(shards, workers=0, pin_memory=True)] == [content(b) for b in whole]
    assert sum(pinned) == 3 * len(whole)


def shared_bytes():
    """Bytes of shared memory that this process and its children hold open for tensors."""
    files = {}
    for process in ["self", *(child.pid for child in multiprocessing.active_children())]:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(descriptor).startswith("/dev/shm/torch"):
                    files[descriptor.stat().st_ino] = descriptor.stat().st_size
    return sum(files.values())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says which files a process holds open")
def test_shared_memory_holds_a_few_pieces_and_no_batch(shards, monkeypatch):
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", 4)
    workers, batch = 2, 128
    index = open_index(shards)
    order = SampleOrder(index.counts, seed=3, global_batch_size=batch, shuffle_window=5)
    decode = Decoder(DataConfig(train=str(shards)), IMAGE, 3)
    loading = loading_of(index, order, decode, rows=(0, batch), stop=6, workers=workers)
    with closing(loading):
        peak = max(shared_bytes() for _ in loading)
    piece = 4 * (3 * SIZE * SIZE + 12 * 4 + 4)
    # A worker holds its ready pieces and one being built; this process holds the one being copied and the one before.
    assert 0 < peak <= piece * (workers * (loader_processes.PREFETCHED_PIECES + 1) + 2)


def test_a_loader_process_says_nothing_of_the_rank_that_died_while_it_took_a_batch(capsys):
    """`multiprocessing.resource_sharer` prints what its thread meets, from a process whose rank is gone."""
    for error in (ConnectionResetError("by peer"), EOFError(), ValueError("a bug")):
        loader_processes._except_lost_rank(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: a bug\n"


@pytest.mark.parametrize("has_index_open", [False, True])
def test_a_process_that_may_open_no_more_files_ends_the_run_and_rejects_nothing(shards, has_index_open):
    index = open_index(shards)
    if has_index_open:
        index.sample(1, 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, before[0]), before[1]))
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(
            UnreachableShardError, match="cannot be opened: Too many open files; raise the limit of open"
        ):
            next(members_of(index, Picked(COUNTS[0], 0, 0)))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_resuming_gives_the_remaining_batches(shards):
    assert [content(b) for b in load(shards, first=4)] == [content(b) for b in load(shards)[4:]]


def test_augmentations_are_those_of_the_sample_in_any_worker_and_rank_and_after_a_resume(shards):
    augmentations = {
        "augmentation": "random_resized_crop",
        "random_resized_crop": RandomResizedCropConfig(scale=(0.2, 1.0)),
        "horizontal_flip_probability": 0.5,
        "colour_jitter": ColourJitterConfig(probability=0.8, brightness=0.4, hue=0.1),
        "grey_probability": 0.2,
        "random_erasing": RandomErasingConfig(probability=0.5),
    }
    whole = [batch.images for batch in load(shards, **augmentations)]
    halves = [
        load(shards, rows=rows, workers=2, first=2, **augmentations) for rows in ((0, BATCH // 2), (BATCH // 2, BATCH))
    ]
    for expected, first, second in zip(whole[2:], *halves, strict=True):
        assert torch.equal(expected, torch.cat([first.images, second.images]))
    assert not torch.equal(whole[0], load(shards)[0].images)


def test_crops_differ_between_epochs_and_not_between_runs(shards):
    crops = {}
    for batch in load(shards, stop=10):
        for row, sample in enumerate(batch.samples.tolist()):
            crops.setdefault(sample, []).append(batch.images[row].tolist())
    assert all(len(seen) >= 3 for seen in crops.values())
    assert sum(seen[0] != seen[1] for seen in crops.values()) > len(crops) / 2


def broken(folder):
    """The same shards, with one sample of each kind of fault; sample number → reason."""
    number, faults = 0, {}
    for shard in range(2):
        with ShardWriter(folder, shard) as writer:
            for _ in range(10):
                members = {"png": picture(number), "txt": f"picture number {number}".encode()}
                if number == 3:
                    members["png"], faults[number] = b"<html>not found</html>", "not_a_picture"
                if number == 5:
                    members["txt"], faults[number] = b"  \n", "no_caption"
                if number == 8:
                    members["png"], faults[number] = members["png"][:-20], "truncated"
                if number == 12:
                    members, faults[number] = {"txt": b"picture number 12"}, "no_picture"
                writer.add(f"{number:04d}", members)
                number += 1
    index = open_index(folder)
    shard, row = index.locate(15)
    member = next(m for m in index.sample(shard, row).members if m.suffix == "png")
    with index.shards[shard].path.open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return faults | {15: "damaged_shard"}


def test_each_epoch_uses_one_of_several_captions_the_same_in_any_process(tmp_path):
    total = 12
    with ShardWriter(tmp_path, 0) as writer:
        for number in range(total):
            captions = [f"picture {number}", "number one", "number two"]
            facts = {"caption": captions[0], "captions": captions}
            if number == 0:  # what another tool stores under this name
                facts["captions"] = ["number one", "number two"]
            members = {"png": picture(number), "txt": captions[0].encode(), "json": json.dumps(facts).encode()}
            writer.add(f"{number:04d}", members)
    epochs, taken = 12, [set() for _ in range(total)]
    found = load(tmp_path, stop=epochs * total // BATCH)
    for batch in found:
        for row, sample in enumerate(batch.samples):
            taken[sample].add(TOKENIZER.decode(batch.tokens[row, 1 : batch.lengths[row] - 1].tolist()).replace(" ", ""))
    assert taken[0] == {"picture0"}
    assert all(said == {f"picture{n}", "numberone", "numbertwo"} for n, said in enumerate(taken) if n > 0)
    assert [content(b) for b in load(tmp_path, stop=epochs * total // BATCH)] == [content(b) for b in found]


def test_delivered_and_rejected_are_what_the_index_counts(tmp_path):
    faults = broken(tmp_path)
    assert set(faults.values()) <= set(REASONS)
    whole = load(tmp_path, stop=5)  # two epochs of 20 in batches of 8
    rejects = [reject for batch in whole for reject in batch.rejects]
    assert {reject.sample: reject.reason for reject in rejects} == faults
    assert len(rejects) == 2 * len(faults)
    planned = [SampleOrder(np.array([10, 10]), seed=3, global_batch_size=8, shuffle_window=5).rows(b) for b in range(5)]
    for batch, plan in zip(whole, planned, strict=True):
        stays = ~np.isin(plan.samples, list(faults))
        assert np.array_equal(batch.samples[stays], plan.samples[stays])
        fillers = batch.samples[~stays]
        assert not set(fillers) & (set(faults) | set(plan.samples))


def test_a_filler_is_the_same_for_any_ranks_and_workers(tmp_path):
    broken(tmp_path)
    halves = load(tmp_path, rows=(0, 4), workers=2), load(tmp_path, rows=(4, 8))
    for batch, one, other in zip(load(tmp_path), *halves, strict=True):
        assert batch.samples.tolist() == [*one.samples, *other.samples]


def test_a_rejected_sample_is_replaced_by_one_of_its_shard_or_else_of_its_source(tmp_path):
    for shard in range(4):
        with ShardWriter(tmp_path, shard) as writer:
            for number in range(10 * shard, 10 * shard + 10):
                is_broken = shard == 3 or number % 10 == 0
                writer.add(f"{number:04d}", {"png": b"" if is_broken else picture(number % 20), "txt": b"a caption"})
    replaced = 0
    for batch_number, batch in enumerate(load(tmp_path, stop=5)):
        planned = SampleOrder(np.full(4, 10), seed=3, global_batch_size=BATCH, shuffle_window=5).rows(batch_number)
        for before, after in zip(planned.samples // 10, batch.samples // 10, strict=True):
            assert before == after or before == 3 > after
            replaced += before == after
    assert 0 < replaced < 5 * BATCH


def test_a_run_of_the_second_order_goes_on_with_its_fillers(shards):
    order = SampleOrder(np.array(COUNTS), seed=3, global_batch_size=BATCH, shuffle_window=5, fills_from_shard=False)
    reader = SampleReader(open_index(shards), order, (0, BATCH), 0, 5)
    fillers = [17, 2, 2, 9, 2, 16, 10, 13, 14, 2, 16, 13]  # of the version that made such runs
    assert [reader.filler(Picked(sample, 0, 1), sample).sample for sample in range(12)] == fillers


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_usable_samples_are_one_line_in_any_process(tmp_path, workers):
    with ShardWriter(tmp_path, 0) as writer:
        for number in range(9):
            writer.add(f"{number:04d}", {"png": b"nothing", "txt": b"a caption"})
    with pytest.raises(ShardError, match=r"^00000.tar: sample \d+ was rejected .*not_a_picture 100.*$"):
        load(tmp_path, workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_index_rejects_the_samples_of_its_shard(shards, workers):
    index = open_index(shards)
    table = shards / "_index" / "00000.tar.index"
    content = bytearray(table.read_bytes())
    content[-3] ^= 1
    table.write_bytes(content)
    order = SampleOrder(index.counts, seed=3, global_batch_size=BATCH, shuffle_window=5)
    decode = Decoder(DataConfig(train=str(shards)), IMAGE, 3)
    loaded = loading_of(index, order, decode, rows=(0, BATCH), stop=5, workers=workers)
    rejects = [reject for batch in loaded for reject in batch.rejects]
    assert {(reject.shard, reject.reason) for reject in rejects} == {("00000.tar", "damaged_shard")}
    assert {reject.sample for reject in rejects} == set(range(COUNTS[0]))


@pytest.mark.parametrize("max_piece_rows", [4, 1])
def test_ending_early_leaves_no_worker_behind(shards, monkeypatch, max_piece_rows):
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", max_piece_rows)
    index = open_index(shards)
    order = SampleOrder(index.counts, seed=0, global_batch_size=BATCH, shuffle_window=5)
    decode = Decoder(DataConfig(train=str(shards)), IMAGE, 0)
    loading = loading_of(index, order, decode, rows=(0, 4), stop=10**6, workers=2)
    next(loading)
    assert len(multiprocessing.active_children()) >= 2
    handler = signal.getsignal(signal.SIGCHLD)
    loading.close()
    assert signal.getsignal(signal.SIGCHLD) is handler
    for process in multiprocessing.active_children():
        process.join(5)
    assert not multiprocessing.active_children()


class SlowDecoder(Decoder):
    def __call__(self, members):
        time.sleep(0.1)
        return super().__call__(members)


def test_ending_early_waits_for_the_piece_that_is_being_built(shards, monkeypatch):
    joined, joins = loader.Batch.joined, []

    def watched(*arguments, **keywords):
        joins.append("interrupted")
        batch = joined(*arguments, **keywords)
        joins[-1] = "done"
        return batch

    monkeypatch.setattr(loader.Batch, "joined", watched)
    monkeypatch.setattr(sample_reader, "MAX_PIECE_ROWS", 2)
    index = open_index(shards)
    order = SampleOrder(index.counts, seed=0, global_batch_size=BATCH, shuffle_window=5)
    decode = SlowDecoder(DataConfig(train=str(shards)), IMAGE, 0)
    loading = loading_of(index, order, decode, rows=(0, 8), stop=9, workers=1)
    next(loading)
    loading.close()
    # If its process were killed now, the thread would check for five seconds whether it is still alive.
    assert joins == ["done", "done"]


def test_the_first_use_of_a_remote_shard_is_a_miss_of_the_cache_and_later_ones_are_hits(shards, tmp_path):
    serve = partial(SimpleHTTPRequestHandler, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        try:
            location = f"http://127.0.0.1:{web.server_port}/{{00000..00002}}.tar"
            for expected in ({"cache_misses": 3}, {"cache_hits": 3}):
                index = open_index(location, ShardCache(tmp_path / "cache"))
                num_bytes = sum(len(data) for sample in index.samples() for data in index.read(sample).values())
                assert index.counts_of_reads == {"bytes_read": num_bytes, **expected}
        finally:
            web.shutdown()
