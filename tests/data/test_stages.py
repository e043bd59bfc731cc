"""The batches of a run whose pictures and captions have other sizes in some stages."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diptych.config.schema import (
    DataConfig,
    ImageTowerConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    TextTowerConfig,
    TrainingConfig,
)
from diptych.config.stages import stages_of
from diptych.data import decoder
from diptych.data.augment import drawn_box
from diptych.data.decoder import Decoder
from diptych.data.draws import Draws
from diptych.data.loader import batches
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.order import SampleOrder
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.data.tokenizer import train_vocabulary

BATCH, SIZE, LENGTH = 8, 32, 12
STAGES = (
    StageConfig(samples=20, image_size=16, context_length=5),
    StageConfig(samples=16, image_size=48),
    StageConfig(),
)
SHAPES = [(16, 5)] * 3 + [(48, LENGTH)] * 2 + [(SIZE, LENGTH)]
"""Of the pictures and captions of each batch: the third begins with sample 16, in the first stage."""
CAPTIONS = [f"picture number {number} of many" for number in range(30)]
TOKENIZER = train_vocabulary(CAPTIONS, 600)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Smooth pictures as JPEG, 80 pixels high, of various widths."""
    folder, random = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    with ShardWriter(folder, 0) as writer:
        for number, caption in enumerate(CAPTIONS):
            noise = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            picture = io.BytesIO()
            noise.resize((80 + 3 * number, 80), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=95)
            writer.add(f"{number:04d}", {"jpg": picture.getvalue(), "txt": caption.encode()})
    return folder


def run_of(shards, stages, **data):
    model = ModelConfig(image=ImageTowerConfig(image_size=SIZE), text=TextTowerConfig(context_length=LENGTH))
    training = TrainingConfig(total_samples=6 * BATCH, global_batch_size=BATCH, stages=stages)
    return RunConfig(run_dir="", data=DataConfig(train=str(shards), **data), model=model, training=training)


def load(shards, stages=STAGES, *, rows=(0, BATCH), first=0, workers=0, **data):
    config, index = run_of(shards, stages, **data), open_index(shards)
    order = SampleOrder(index.counts, seed=3, global_batch_size=BATCH, shuffle_window=5)
    decode = Decoder(config.data, config.model.image, 3, None, stages_of(config))
    plan = {"context_length": LENGTH, "rows": rows, "first": first, "stop": 6, "processes": LoaderProcesses(workers)}
    return list(batches(index, order, decode, TOKENIZER, **plan))


def content(batch):
    return batch.images.tolist(), batch.tokens.tolist(), batch.lengths.tolist(), batch.samples.tolist()


def test_each_batch_has_the_sizes_of_its_stage_and_the_samples_of_a_run_without(shards):
    staged, plain = load(shards), load(shards, None)
    assert [(batch.images.shape[2], batch.tokens.shape[1]) for batch in staged] == SHAPES
    assert all(batch.images.shape[2] == batch.images.shape[3] and batch.lengths.max() <= length
               for batch, (_, length) in zip(staged, SHAPES, strict=True))  # fmt: skip
    assert [batch.samples.tolist() for batch in staged] == [batch.samples.tolist() for batch in plain]
    assert content(staged[-1]) == content(plain[-1])


@pytest.mark.parametrize(("workers", "first"), [(2, 0), (1, 2), (0, 3), (2, 4)])
def test_any_number_of_workers_ranks_and_starts_gives_the_same_batches(shards, workers, first):
    whole = [content(batch) for batch in load(shards)][first:]
    halves = [load(shards, rows=rows, first=first, workers=workers) for rows in ((0, 3), (3, BATCH))]
    joined = [
        tuple(left + right for left, right in zip(*map(content, pair), strict=True))
        for pair in zip(*halves, strict=True)
    ]
    assert joined == whole


@pytest.mark.parametrize("augmentation", ["random_square_crop", "random_resized_crop", "none"])
def test_a_picture_decoded_smaller_shows_the_same_part_as_one_decoded_whole(shards, monkeypatch, augmentation):
    small = load(shards, augmentation=augmentation)[0].images.float()
    opened = decoder.open_pixels
    monkeypatch.setattr(decoder, "open_pixels", lambda data, **_: opened(data))
    whole = load(shards, augmentation=augmentation)[0].images.float()
    # The edges of the crop are rounded to pixels of the smaller picture. Another picture differs by 60 of 255.
    assert 0 < (small - whole).abs().mean() < 10
    assert (small - whole.roll(1, 0)).abs().mean() > 40


@pytest.mark.parametrize("augmentation", ["random_square_crop", "random_resized_crop"])
def test_a_box_of_a_picture_of_half_the_size_is_half_the_box(augmentation):
    config, image = DataConfig(train="", augmentation=augmentation), ImageTowerConfig(image_size=SIZE)
    config = replace(config, random_resized_crop=replace(config.random_resized_crop, scale=(0.3, 0.8)))
    for key in range(200):
        whole = drawn_box(640, 480, config, image, Draws(key))
        half = drawn_box(320, 240, config, image, Draws(key))
        assert np.abs(np.array(whole) / 2 - half).max() <= 1.5


def test_only_stages_with_smaller_pictures_than_the_towers_decode_smaller(shards, monkeypatch):
    asked = []
    opened = decoder.open_pixels
    monkeypatch.setattr(
        decoder, "open_pixels", lambda data, **options: asked.append(options) or opened(data, **options)
    )
    load(shards)
    assert [bool(options) for options in asked] == [True] * 24 + [False] * 24
