"""Which stage a batch belongs to, and which stages are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.config.load import ConfigError, load_config
from diptych.config.schema import DataConfig, RunConfig, StageConfig, TrainingConfig
from diptych.config.stages import config_of_stage, stage_at, stages_of

RUN = ("run_dir=run", "data.train=shards", "training.total_samples=1000", "training.global_batch_size=10")
MODEL = ("model.image.image_size=96", "model.text.context_length=20")


def stages(written, *overrides):
    return stages_of(load_config([], [*RUN, *MODEL, *overrides, f"training.stages={written}"]).config)


def mistakes(written, *overrides):
    with pytest.raises(ConfigError) as caught:
        stages(written, *overrides)
    return [line.removeprefix("command line: ") for line in str(caught.value).splitlines()]


@given(data=st.data(), size=st.integers(2, 50))
def test_a_batch_belongs_to_the_stage_of_its_first_sample(data, size):
    samples = data.draw(st.lists(st.integers(size, 500), min_size=1, max_size=5))
    total = sum(samples) + data.draw(st.integers(2 * size, 200))
    each = (*(StageConfig(samples=number, image_size=number) for number in samples), StageConfig())
    training = TrainingConfig(total_samples=total, global_batch_size=size, stages=each)
    stages = stages_of(RunConfig(run_dir="", data=DataConfig(train=""), training=training))
    of_sample = [stage.image_size for stage in each for _ in range(stage.samples or total - sum(samples))]
    batches = range(total // size)
    expected = [of_sample[batch * size] or 224 for batch in batches]
    assert [stage_at(stages, batch).model.image.image_size for batch in batches] == expected
    assert [batch for stage in stages for batch in stage.batches] == list(batches)
    assert all(len(stage.batches) for stage in stages)


def test_what_a_stage_leaves_out_is_as_the_model_has_it():
    written = "[{samples: 2e2, image_size: 48, context_length: 8}, {samples: 300, patch_dropout: 0.5}, {}]"
    small, dropped, whole = stages(written, "model.image.overrides={patch_drop_rate: 0.25}")
    assert [stage.batches for stage in (small, dropped, whole)] == [range(20), range(20, 50), range(50, 100)]
    assert (small.model.image.image_size, small.model.text.context_length, small.patch_dropout) == (48, 8, 0.25)
    assert (dropped.model.image.image_size, dropped.model.text.context_length, dropped.patch_dropout) == (96, 20, 0.5)
    assert whole.patch_dropout == 0.25 and whole.learning_rate_scale == 1


def test_a_run_without_stages_is_one():
    config = load_config([], [*RUN, *MODEL]).config
    (stage,) = stages_of(config)
    assert config.training.stages is None
    assert stage.model == config.model and stage.batches == range(100)
    assert config_of_stage(config, stage) == config


@pytest.mark.parametrize(
    ("written", "mistake"),
    [
        ("[{samples: 0}, {}]", "training.stages[0].samples is 0; it must be above 0"),
        ("[{samples: 10, image_size: -8}, {}]", "training.stages[0].image_size is -8; it must be above 0"),
        ("[{samples: 10, patch_dropout: 1}, {}]", "[0].patch_dropout is 1.0; it must be at least 0 and below 1"),
        ("[{samples: 10, patch_dropout: -1}, {}]", "[0].patch_dropout is -1.0; it must be at least 0 and below 1"),
        ("[{samples: 10}, {learning_rate_scale: .nan}]", "[1].learning_rate_scale is nan; it must be above 0"),
        ("[{samples: 10, context_length: 21}, {}]", "is 21; it must be at least 3 and at most model.text.context_len"),
        ("[{samples: 10, context_length: 2}, {}]", "is 2; it must be at least 3 and at most model.text.context_len"),
        ("[{samples: ten}, {}]", "training.stages[0].samples is 'ten'"),
        ("[{samples: 10, size: 4}, {}]", "unknown key training.stages[0].size; known here: samples, image_size"),
        ("[]", "training.stages is empty; list at least one stage"),
        ("[{}, {}]", "training.stages[0].samples is not set; only the last stage may leave it out"),
        ("[{samples: 1000}, {}]", "1000 samples before the last one, which leaves it none of training.total_samples"),
        ("[{samples: 500}, {samples: 400}]", "have 900 samples, and training.total_samples is 1000; set that to 900"),
        ("[{samples: 995}, {}]", "[1] has no batch: none of the batches of 10 (training.global_batch_size) begins"),
        ("[{samples: 500}, {image_size: 48}]", "the last stage is 48, and model.image.image_size is 96; the last"),
        ("[{samples: 500}, {context_length: 8}]", "the last stage is 8, and model.text.context_length is 20; the las"),
    ],
)
def test_each_bad_stage_is_one_line(written, mistake):
    (line,) = mistakes(written)
    assert mistake in line
