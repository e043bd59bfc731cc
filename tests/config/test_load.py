import dataclasses
import math
from pathlib import Path

import pytest

from diptych.config.keys import all_keys, describe_keys, did_you_mean
from diptych.config.load import ConfigError, config_from_dict, files_and_overrides, load_config
from diptych.config.ranges import RANGES
from diptych.config.rules import doubtful
from diptych.config.values import config_to_dict, differing_keys, dump_config

MINIMAL = """
data: {train: shards}
training: {total_samples: 1000, global_batch_size: 10}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def mistakes(files, overrides=(), checks=()):
    with pytest.raises(ConfigError) as caught:
        load_config(files, overrides, checks)
    return str(caught.value).splitlines()


def test_files_merge_left_to_right_and_overrides_win(write):
    base = write(MINIMAL + "optimizer: {learning_rate: 1e-3, beta2: 0.9}", "base.yaml")
    mine = write("optimizer: {learning_rate: 2e-3}\nmodel: {text: {layers: 2}}", "mine.yaml")
    loaded = load_config([base, mine], ["model.text.layers=3", "training.seed=7"])
    config = loaded.config
    assert (config.optimizer.learning_rate, config.optimizer.beta2) == (2e-3, 0.9)
    assert (config.model.text.layers, config.training.seed) == (3, 7)
    assert config.run_dir == "runs/mine"
    assert loaded.source_of("optimizer.beta2") == str(base)
    assert loaded.source_of("optimizer.learning_rate") == str(mine)
    assert loaded.source_of("training.seed") == "command line"
    assert loaded.source_of("optimizer.epsilon") == "default"


def test_a_config_is_frozen_and_survives_yaml(write):
    path = write(MINIMAL + "model: {image: {mean: [0.5, 0.5, 0.5], overrides: {channels: [1, 2], deep: {a: [3]}}}}")
    config = load_config([path]).config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.seed = 1
    assert config_from_dict(config_to_dict(config)) == config
    assert load_config([write(dump_config(config), "again.yaml")]).config == config


def test_an_empty_mapping_removes_what_was_set_before(write):
    base = write(MINIMAL + "model: {image: {overrides: {depth: 3}}}", "base.yaml")
    mine = write("model: {image: {overrides: {}}}", "mine.yaml")
    assert load_config([base, mine]).config.model.image.overrides == {}
    emptied = load_config([base], ["model.image.overrides={}"])
    assert emptied.config.model.image.overrides == {}
    assert emptied.source_of("model.image.overrides") == "command line"
    again = load_config([base, mine], ["model.image.overrides.depth=4"])
    assert again.config.model.image.overrides == {"depth": 4}


def test_numbers_may_be_written_as_people_write_them(write):
    config = load_config([write(MINIMAL)], ["training.total_samples=1.28e7", "optimizer.learning_rate=1"]).config
    assert config.training.total_samples == 12_800_000 and isinstance(config.training.total_samples, int)
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)


def test_off_means_off(write):
    assert load_config([write(MINIMAL + "tracking: {wandb: off}")]).config.tracking.wandb == "off"


def test_all_mistakes_are_named_at_once_with_their_origins(write):
    path = write(
        "data: {trian: shards, augmentation: flip}\n"
        "training: {total_samples: many, global_batch_size: 12.5, precision: fp16}\n"
        "learning_rate: 3\n"
        "optimizer: 4\n"
        "checkpoint: {keep: 1}\n"
    )
    said = mistakes([path], ["model.text.heads=3"])
    expected = [
        f"{path}: unknown key data.trian; did you mean data.train?",
        f"{path}: unknown key learning_rate; did you mean optimizer.learning_rate?",
        "data.train is not set",
        f"{path}: data.augmentation is 'flip'; it should be 'random_square_crop'",
        f"{path}: training.total_samples is 'many'; it should be a valid integer",
        f"{path}: training.global_batch_size is 12.5; it should be a valid integer",
        f"{path}: training.precision is 'fp16'; it should be 'auto', 'fp32' or 'bf16'",
        f"{path}: optimizer is 4; expected a mapping",
        f"{path}: checkpoint.keep is 1; it must be at least 2",
        "command line: model.text.width 512 cannot be split over 3 heads",
    ]
    assert len(said) == len(expected)
    for start in expected:
        assert sum(line.startswith(start) for line in said) == 1, start


def test_a_mistake_in_a_mapping_names_all_places_that_set_something_in_it(write):
    def check(config):
        yield "model.image", "model.image cannot be built"
        yield "model.text", "model.text cannot be built"

    base = write(MINIMAL + "model: {image: {name: resnet}}", "base.yaml")
    said = mistakes([base], ["model.image.image_size=2"], [check])
    assert said == [f"{base} and command line: model.image cannot be built", "model.text cannot be built"]


def test_a_mistake_is_reported_once(write):
    def check(config):
        yield "model", "model: the text tower cannot be built"
        yield "data.train", "no such folder"

    said = mistakes([write(MINIMAL)], ["model.text.heads=3"], [check])
    assert said == [
        "command line: model.text.width 512 cannot be split over 3 heads",
        f"{write(MINIMAL)}: no such folder",
    ]


def test_a_mistake_hides_no_other(write):
    said = mistakes([write(MINIMAL)], ["training.global_batch_size=2000", "optimizer.warmup_samples=1000"])
    assert len(said) == 2


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.lerning_rate", "did you mean optimizer.learning_rate?"),
        ("model.text.width_", "did you mean model.text.width?"),
        ("model.image.image_sise", "did you mean model.image.image_size?"),
        ("model.image.frobnicate", "known here: name, image_size"),
        ("rundir", "did you mean run_dir?"),
        ("data.seed", "did you mean training.seed?"),
        ("lr", "did you mean optimizer.learning_rate?"),
        ("optimizer.lr", "did you mean optimizer.learning_rate?"),
        ("training.learing_rate", "did you mean optimizer.learning_rate?"),
        ("batch_size", "did you mean training.global_batch_size?"),
        ("batchsize", "did you mean training.global_batch_size?"),
        ("training.batch_size", "did you mean training.global_batch_size?"),
        ("epochs", "did you mean training.total_samples? It counts samples."),
        ("training.epochs", "did you mean training.total_samples? It counts samples."),
        ("num_workers", "did you mean machine.loader_workers?"),
        ("image_size", "did you mean model.image.image_size?"),
        ("wandb.project", "unknown key wandb.project; did you mean tracking.wandb_project?"),
        ("optim.lr", "unknown key optim; did you mean optimizer?"),
        ("some.frobnicate", "unknown key some.frobnicate; diptych train --keys lists all"),
    ],
)
def test_the_key_that_was_meant_is_named(write, key, meant):
    (line,) = mistakes([write(MINIMAL)], [f"{key}=3"])
    assert meant in line


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optimizer.warmup_samples=1000", "the run would end while warming up"),
        ('optimizer.groups={"a.[0-9]*": {weight_decay: x}}', "groups['a.[0-9]*'].weight_decay is 'x'; it should be"),
        ("optimizer.groups={image: {lr: 3}}", "optimizer.groups 'image': lr is no setting of a pattern; known: learn"),
        ("optimizer.groups={a: {learning_rate_scale: 0}}", "it must be above 0; model.freeze keeps parameters fixed"),
        (
            "optimizer.groups={a: {weight_decay: -1}}",
            "optimizer.groups 'a': weight_decay is -1.0; it must be 0 or",
        ),
        ("optimizer.layer_decay=1.5", "optimizer.layer_decay is 1.5; it must be above 0 and at most 1"),
        ("optimizer.cooldown_samples=9", "has no effect with optimizer.schedule cosine, which reaches 0 at the end"),
        ("optimizer.schedule=rsqrt", "and optimizer.warmup_samples is 0; set it above 0"),
        ("optimizer={schedule: wsd, warmup_samples: 5, cooldown_samples: 996}", "must begin after the warm-up"),
        ("training.global_batch_size=2000", "less than one global batch"),
        ("training.global_batch_size=0", "must be above 0"),
        ("optimizer.beta2=1", "must be between 0 and 1"),
        ("optimizer.weight_decay=-0.1", "must be 0 or more"),
        ("model.text.context_length=2", "it must be at least 3, for start, one token and end"),
        ("optimizer.learning_rate=-.5", "must be above 0"),
        ("optimizer.weight_decay=.inf", "must be a finite number"),
        (
            "training.initial_logit_scale=5",
            "training.initial_logit_scale 5 is above its maximum, training.max_logit_scale 4.6",
        ),
        ("optimizer.learning_rate=.inf", "must be a finite number"),
        ("training.seed=18446744073709551617", "must be 0 or more and below 2^63"),
        ("training.seed=-1", "must be 0 or more and below 2^63"),
        ("training.initial_logit_bias=-10", "training.initial_logit_bias is -10.0; the softmax loss has no bias"),
        ("machine.stop_after=3:50h", "machine.stop_after '3:50h' is no duration; expected one such as 3h50m"),
        ("machine.stop_after=5", "machine.stop_after is 5; it should be a valid string"),
        ("machine.zero_stage=4", "machine.zero_stage is 4"),
        ("data.train=3", "data.train is 3"),
        ("data.train=[a, {shards: b}]", "data.train[0] is 'a'; expected a mapping of its settings"),
        ("data.train=[{shards: a, weight: x}]", "data.train[0].weight is 'x'; it should be a valid number"),
        ("data.train=[{shards: a, captions: {alt: x}}]", "data.train[0].captions.alt is 'x'; it should be"),
        ("data.train=[{shards: a, wieght: 3}]", "unknown key data.train[0].wieght; did you mean data.train[0].weight?"),
        ("data.train=[{shards: a, seed: 3}]", "unknown key data.train[0].seed; known here: shards, weight, captions"),
        ("data.train=[{shards: a, weight: 0}]", "data.train[0].weight is 0.0; it must be above 0"),
        ("data.train=[{shards: a, weight: .nan}]", "data.train[0].weight is nan; it must be above 0"),
        ("data.train=[]", "data.train is empty; name a folder of shards"),
        (
            "data.train={shards: a}",
            "data.train is {'shards': 'a'}; expected shards, a list of them, or a list of {shards",
        ),
        (
            "data.train=[{weight: 1}]",
            "data.train[0].shards is not set; it has no default, so a file or the mapping there",
        ),
        (
            "data.train=[{shards: a, captions: b}]",
            "data.train[0].captions is 'b'; expected a mapping, such as {NAME: V",
        ),
        ("data.train=[{shards: a, weight: 3}, {shards: b}]", "data.train[1] has no weight, and others have"),
        ("data.train=[{shards: a, captions: {}}]", "data.train[0].captions is {}; its probabilities must be"),
        ("data.train=[{shards: a, captions: {txt: .5, alt: .6}}]", "must be above 0, and 1 in total"),
        ("data.train=[{shards: a, captions: {txt: 1.5, alt: -.5}}]", "must be above 0, and 1 in total"),
        ("data.streams=0", "data.streams is 0; it must be above 0"),
        ("training.seed=true", "training.seed is True"),
        ("seed", "write key=value"),
        ("model.image.mean=[1, 2]", "model.image.mean is [1.0, 2.0]; it contains too few numbers"),
        ("model.image.mean=[1, 2, 3, 4]", "model.image.mean is [1.0, 2.0, 3.0, 4.0]; "),
        ("optimizer=null", "optimizer is None; expected a mapping of its settings"),
        ("tracking.wandb=on", "tracking.wandb is True; it should be 'auto'"),
    ],
)
def test_an_impossible_value_is_refused(write, override, complaint):
    (line,) = mistakes([write(MINIMAL)], [override])
    assert complaint in line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "my.yaml:1: not valid YAML"),
        (
            "data: {train: x}\noptimizer: {}\ndata: {}\n",
            "my.yaml:3: not valid YAML: the key 'data' appears",
        ),
        ("data: {train: x,\n  train: y}\n", "my.yaml:2: not valid YAML: the key 'train' appears twice"),
        ("- a", "contains a list; expected a mapping"),
        ("", "data is not set"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(write, text, complaint):
    said = mistakes([write(text)])
    assert complaint in said[0]
    assert not any("data.train" in line for line in said)  # a stand-in, where data is not set


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read (No such file" in mistakes([tmp_path / "no.yaml"])[0]


def test_further_checks_are_reported_unless_their_key_is_mistyped(write):
    def check(config):
        yield "data.train", f"no shards at {config.data.train}"
        yield "loss.name", "no such loss"

    assert len(mistakes([write(MINIMAL)], [], [check])) == 2
    assert mistakes([write(MINIMAL)], ["data.train=3"], [check])[1:] == ["no such loss"]


@pytest.mark.parametrize("key", dict.fromkeys(key for each in RANGES for key in each.keys))
def test_every_range_is_about_an_existing_key(write, key):
    (line,) = mistakes([write(MINIMAL)], [f"{key}=-1"])
    assert line.startswith(f"command line: {key} is -1")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("random_resized_crop: {scale: [1, 0.5]}", "scale is [1.0, 0.5]; it must be two numbers above 0 and up to 1"),
        ("random_resized_crop: {scale: [0.5, 1.5]}", "scale is [0.5, 1.5]; it must be two numbers above 0 and up to 1"),
        ("random_resized_crop: {ratio: [0, 1]}", "ratio is [0.0, 1.0]; it must be two numbers above 0"),
        ("random_resized_crop: {ratio: [1]}", "data.random_resized_crop.ratio is"),
        ("augmentation: none, random_resized_crop: {scale: [0.5, 1]}", "no effect with data.augmentation none"),
        ("colour_jitter: {brightness: 0.4, hue: 0.6}", "hue is 0.6; it must be between 0 and 0.5"),
        ("colour_jitter: {probability: 0.8}", "no effect without brightness, contrast, saturation or hue"),
        ("random_erasing: {scale: [0.1, 0.2]}", "no effect with a probability of 0"),
        ("color_jitter: {hue: 0.1}", "did you mean data.colour_jitter?"),
        ("hflip: 0.5", "did you mean data.horizontal_flip_probability?"),
    ],
)
def test_augmentations_that_cannot_work_or_do_nothing_are_refused(write, settings, complaint):
    crop = "" if "augmentation" in settings else "augmentation: random_resized_crop, "
    text = f"data: {{train: shards, {crop}{settings}}}\ntraining: {{total_samples: 100, global_batch_size: 10}}\n"
    (line,) = mistakes([write(text)])
    assert complaint in line


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("train: a, groups: {power: 0.5}", "data.groups has no effect without data.groups.file"),
        ("train: a, streams: 3, groups: {file: g.npz}", "data.streams 3 has no effect with data.groups.file"),
        ("train: [{shards: a, weight: 1}], groups: {file: g.npz}", "both say how often samples come"),
        (
            "train: [{shards: a, captions: {alt: 1}}], unique_captions_in_batch: true",
            "a source of data.train has other",
        ),
        ("train: a, grouping: {file: g.npz}", "did you mean data.groups?"),
    ],
)
def test_groups_and_unique_captions_that_cannot_work_are_refused(write, settings, complaint):
    (line,) = mistakes([write(f"data: {{{settings}}}\ntraining: {{total_samples: 100, global_batch_size: 10}}\n")])
    assert complaint in line


def test_differing_keys_are_named_with_both_values(write):
    one = load_config([write(MINIMAL)]).config
    other = load_config([write(MINIMAL)], ["training.seed=1", "model.image.overrides.depth=3"]).config
    assert differing_keys(one, one) == []
    assert ("training.seed", 0, 1) in differing_keys(one, other)
    assert ("model.image.overrides.depth", None, 3) in differing_keys(one, other)


@pytest.mark.parametrize("key", list(all_keys()))
def test_a_known_key_is_meant_by_itself(key):
    assert did_you_mean(key) in (f"did you mean {key}?", f"did you mean {key}? It counts samples.")


def test_the_page_of_all_keys_is_a_config_that_wants_what_has_no_default(write):
    page = describe_keys()
    assert max(map(len, page.splitlines())) < 80
    required = ["data.train=shards", "training.total_samples=1000", "training.global_batch_size=10"]
    assert load_config([write(page)], required).config == load_config([write("", "my.yaml")], required).config
    assert {line.partition(" is ")[0].rpartition(" ")[2] for line in mistakes([write(page)])} == {
        word.partition("=")[0] for word in required
    }


def test_the_page_of_all_keys_says_what_each_is():
    lines = [line.strip() for line in describe_keys().splitlines()]
    for line in (
        "train:  # text or list of text or list of mapping",
        "augmentation: random_square_crop",
        "# random_square_crop | random_resized_crop | none",
        "gradient_clip_norm: 1.0  # number or null",
        "mean: [0.48145466, 0.4578275, 0.40821073]  # 3 numbers",
        "# Number of newest valid checkpoints that are kept; at least 2.",
    ):
        assert line in lines


def test_a_tilde_means_the_home_folder_in_every_path(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(
        "run_dir: ~/runs/x\ndata: {train: [~/a, 'b/{0..3}.tar', ./c/]}\ntokenizer: {vocabulary: ~/v.json}\n"
        "training: {total_samples: 1000, global_batch_size: 10}"
    )
    config = load_config(["~/my.yaml"], ["model.initial_weights=~/w"]).config
    assert path.exists()
    assert config.run_dir == f"{tmp_path}/runs/x"
    assert config.data.train == (f"{tmp_path}/a", "b/{0..3}.tar", "./c/")
    assert config.tokenizer.vocabulary == f"{tmp_path}/v.json"
    assert config.model.initial_weights == f"{tmp_path}/w"


@pytest.mark.parametrize("key", ["run_dir", "data.cache.folder", "tokenizer.vocabulary", "model.initial_weights"])
def test_a_url_is_refused_as_a_path_of_a_config(write, key):
    (line,) = mistakes([write(MINIMAL)], [f"{key}=s3://bucket/x"])
    assert line.startswith(f"command line: {key} s3://bucket/x is not on this machine")


def test_a_contradiction_names_the_origins_of_its_values(write):
    (line,) = mistakes([write(MINIMAL)], ["training.global_batch_size=2000"])
    assert line.startswith(f"{write(MINIMAL)} and command line: training.total_samples 1000 is less")
    (line,) = mistakes([write(MINIMAL)], ["optimizer.warmup_samples=2000"])
    assert line.startswith(f"command line and {write(MINIMAL)}: optimizer.warmup_samples 2000 is not below")


def test_a_batch_of_one_pair_is_refused(write):
    (line,) = mistakes([write(MINIMAL)], ["training.global_batch_size=1"])
    assert "has no negatives" in line


def test_a_batch_larger_than_the_data_and_hundreds_of_epochs_are_doubtful(write):
    config = load_config([write(MINIMAL)]).config
    assert list(doubtful(config, 10)) == []
    (batch, epochs) = doubtful(config, 9)
    assert "10 is more than the 9 samples" in batch and "111 epochs" in epochs


def test_the_sigmoid_loss_starts_from_siglips_values_unless_set_otherwise(write):
    file = write(MINIMAL)
    training = load_config([file], ["loss.name=sigmoid"]).config.training
    assert training.initial_logit_scale == pytest.approx(math.log(10)) and training.initial_logit_bias == -10
    loaded = load_config([file], ["loss.name=sigmoid", "training.initial_logit_bias=-5"])
    assert loaded.config.training.initial_logit_bias == -5
    assert loaded.source_of("training.initial_logit_scale") == "loss.name sigmoid"
    assert load_config([file]).config.training.initial_logit_bias is None


def test_a_word_with_an_equals_sign_may_be_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.seed=3").write_text("")
    (tmp_path / "optimizer.learning_rate=1").mkdir()
    (tmp_path / "optimizer.learning_rate=1" / "my.yaml").write_text("")
    files = [
        "my.yaml",
        "lr=1e-3.yaml",
        "lr=1/my.yaml",
        "./seed=1",
        "training.seed=3",
        "optimizer.learning_rate=1/my.yaml",
    ]
    overrides = ["training.seed=4", "tokenizer.vocabulary=v.yaml", "run_dir=a/b.yaml", "lr=3", "data.train=a=b"]
    assert files_and_overrides([*files, *overrides]) == ([Path(file) for file in files], overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "key"),
    [
        (MINIMAL, ["data.train=sh\udcffards"], "data.train"),
        (MINIMAL, ["run_dir=\udcff"], "run_dir"),
        (MINIMAL + 'model: {image: {name: "\\ud800"}}', [], "model.image.name"),
        ("data: {train: [a, 'b\\udcff']}".replace("'", '"') + MINIMAL.partition("}")[2], [], "data.train"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_as_such(write, text, overrides, key):
    (line,) = mistakes([write(text)], overrides)
    assert f": {key} is " in line and "with bytes that are not UTF-8" in line


def test_a_config_whose_name_is_not_utf8_needs_a_run_dir(write):
    path = write(MINIMAL, "my\udcff.yaml")
    assert mistakes([path])[0].startswith("run_dir is 'runs/my\\udcff', with bytes that are not UTF-8")
    assert load_config([path], ["run_dir=runs/my"]).config.run_dir == "runs/my"
