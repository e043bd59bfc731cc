"""Every recipe loads, and has the sizes that its paper gives."""

import io
import math
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.cli import main
from diptych.config.keys import all_keys
from diptych.config.load import load_config
from diptych.config.schema import CacheConfig, DataConfig, SourceConfig
from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary
from diptych.errors import UserError
from diptych.model.dual_encoder import expected_shapes
from diptych.plan.gpus import gpu_named
from diptych.plan.on_gpus import Assumptions, sum_of_cases
from diptych.plan.plan import make_plans
from diptych.plan.stages import flops_text
from diptych.training.checks import check_cache, check_run
from diptych.world import World
from tests.training.tiny import at_night
from tests.warm import Warm

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = {"vit_b_32": 151.28, "vit_b_16": 149.62, "vit_l_14": 427.62, "vit_l_14_336": 427.94}
"""Millions of parameters."""
FAST = {"vit_b_32": "B/32", "vit_b_16": "B/16", "vit_l_14": "L/14"}
"""The paper's recipe → its model in the table of fast recipes."""
PLANNED = {"vit_b_32": FAST["vit_b_32"], **dict(at_night(*FAST.items()))}
"""By day the one that is computed soonest."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with ShardWriter(folder, 0) as writer:
        writer.add("0", {"png": picture.getvalue(), "txt": b"a black square"})
    return folder


def dry_run(capsys, name: str, *overrides: str) -> str:
    main(["train", str(CONFIGS / f"{name}.yaml"), "--dry-run", *overrides])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_has_the_papers_size_and_length(name, shards, tmp_path):
    overrides = [f"data.train={shards}", "model.initial_weights=null", f"run_dir={tmp_path}"]
    config = load_config([CONFIGS / f"{name}.yaml"], overrides, [partial(check_run, world=World())]).config
    parameters = sum(math.prod(shape) for shape in expected_shapes(config.model, 49_408).values())
    assert round(parameters / 1e6, 2) == PAPER[name]
    steps = 12_207 if name == "vit_l_14_336" else 390_625  # of 32,768: one epoch of 400 M, or 32
    training, size = config.training, 32_768
    assert (training.global_batch_size, training.total_samples // size) == (size, steps)
    assert config.optimizer.warmup_samples == 2_000 * size


@pytest.mark.parametrize("name", PLANNED)
def test_a_fast_recipe_trains_the_papers_model_in_stages_of_whole_batches(name, shards, tmp_path, capsys):
    said = dry_run(capsys, f"{name}_fast", f"data.train={shards}", f"run_dir={tmp_path}")
    assert "stages    stage 2: 224 pixels, 77 tokens" in said
    fast, paper = (load_config([CONFIGS / f"{each}.yaml"]).config for each in (f"{name}_fast", name))
    assert fast.model == paper.model and fast.training.global_batch_size == paper.training.global_batch_size
    ends = [stage.samples or 0 for stage in fast.training.stages or ()] + [fast.training.total_samples]
    assert all(samples % fast.training.global_batch_size == 0 for samples in [*ends, fast.optimizer.warmup_samples])


@pytest.mark.parametrize(("name", "model"), PLANNED.items())
def test_the_table_of_fast_recipes_has_what_a_plan_computes(name, model):
    table = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {model} \| .*$", table, re.MULTILINE)

    def computed(file: str, mean_tokens: float | None) -> tuple[float, float]:
        config = load_config([CONFIGS / f"{file}.yaml"]).config
        plans = make_plans(config, 49_408, gpu_named("h100"), [64], Assumptions(mean_tokens=mean_tokens))
        hours = sum_of_cases([plan.on_gpus[0].gpu_hours for plan in plans])["typical"]
        return sum(plan.flops for plan in plans), hours

    (fast, fast_hours), (paper, paper_hours) = computed(f"{name}_fast", None), computed(name, None)
    short = computed(f"{name}_fast", 20)[0] / computed(name, 20)[0]
    assert f"| {fast / paper:.0%} ({short:.0%}) |".replace("%", " %") in row
    assert f"| {fast_hours:,.0f}, {paper_hours:,.0f} |" in row
    head = (CONFIGS / f"{name}_fast.yaml").read_text(encoding="utf-8")
    said = f"# Operations: {fast / paper:.0%}".replace("%", " %")
    assert f"{said} of the paper's, {flops_text(fast)} of {flops_text(paper)}: `diptych plan FILE`" in head


def test_a_dry_run_prints_the_size_and_length_of_a_recipe(shards, tmp_path, capsys):
    said = dry_run(capsys, "vit_b_32", f"data.train={shards}", f"run_dir={tmp_path}")
    assert f"{PAPER['vit_b_32']} M parameters, bf16" in said
    assert "390,625 of 32,768 samples; warm-up 2,000 steps" in said


def test_a_dry_run_has_its_sources_in_one_column(shards, tmp_path, capsys):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    said = dry_run(capsys, "demo", f"data.train={shards}", f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}")
    starts = {line.rindex(" default") for line in said.splitlines() if line.endswith(" default")}
    assert len(starts) == 1


def test_a_file_that_may_not_be_read_is_reported_as_such(shards, tmp_path):
    """By the system's permissions, for which root has to give up its capabilities."""
    vocabulary, run, tar = tmp_path / "vocabulary.json", tmp_path / "run", next(shards.glob("*.tar"))
    train_vocabulary(["a black square"], 520).save(vocabulary)
    (run / "checkpoints" / "step_1").mkdir(parents=True)
    (run / "config.yaml").touch()
    words = [f"{CONFIGS}/demo.yaml", f"data.train={shards}", f"tokenizer.vocabulary={vocabulary}", f"run_dir={run}"]
    for file in (vocabulary, tar, run / "config.yaml"):
        file.chmod(0)
    code = f"""
import ctypes, os, sys
from diptych.cli import main
vocabulary, tar, words = {str(vocabulary)!r}, {str(tar)!r}, {words}
if os.geteuid() == 0:
    version_3_of_this_process, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version_3_of_this_process, none) == 0
try:
    main(["train", *words, "--dry-run"])
except SystemExit:
    print("again", file=sys.stderr)
os.chmod(vocabulary, 0o644)
os.chmod(tar, 0o644)
main(["train", *words])
"""
    with (tmp_path / "output").open("wb") as output:
        assert Warm("tests.warm:interpret", code, files=(0, output.fileno(), output.fileno())).wait() == 2
    first, _, told = (tmp_path / "output").read_text().partition("again\n")
    assert f"{vocabulary}: Permission denied; make it readable" in first
    assert f"{tar}: Permission denied; make it readable" in first and "Errno" not in first
    assert f"{run / 'config.yaml'}: cannot be read (Permission denied)" in told


def test_the_demos_recipe_can_be_run(shards, tmp_path, capsys):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    said = dry_run(capsys, "demo", f"data.train={shards}", f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}")
    assert "M parameters, fp32" in said


def test_a_dry_run_for_a_gpu_that_is_not_here_counts_its_precision(shards, tmp_path, capsys):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    words = (
        f"data.train={shards}",
        f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}",
        f"run_dir={tmp_path / 'run'}",  # that of the recipe may have a run, in fp32
        "machine.gpu_memory_gib=79",
    )
    said = {asked: dry_run(capsys, "demo", *words, f"training.precision={asked}") for asked in ("auto", "bf16", "fp32")}
    memory = {asked: re.findall("^memory .*", text, re.MULTILINE) for asked, text in said.items()}
    assert memory["auto"] == memory["bf16"] != memory["fp32"]
    assert "M parameters, bf16" in said["auto"] and "auto: on a GPU (machine.gpu_memory_gib)" in said["auto"]


def test_a_dry_run_says_if_results_depend_on_the_number_of_ranks(shards, tmp_path, capsys, monkeypatch):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    words = (f"data.train={shards}", f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}")
    assert "batch normalisation" not in dry_run(capsys, "demo", *words)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "results will differ from those on another number of ranks" in dry_run(capsys, "demo", *words)


def test_a_dry_run_of_a_mixture_gives_the_share_and_the_epochs_of_each_source(shards, tmp_path, capsys):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    other = shutil.copytree(shards, tmp_path / "other")
    mixture = f"data.train=[{{shards: {shards}, weight: 3}}, {{shards: {other}, weight: 1}}]"
    words = (mixture, f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}", "training.total_samples=8000")
    said = dry_run(capsys, "demo", *words)
    assert f"source    {shards}: 75.0 % of each batch, 6000.0 epochs of 1 sample" in said
    assert f"source    {other}: 25.0 % of each batch, 2000.0 epochs of 1 sample" in said
    with pytest.raises(SystemExit, match="2"):
        dry_run(capsys, "demo", mixture.replace("weight: 1", "weight: 1e-9"), *words[1:])
    assert "data.train: a source of weight 1e-09 would have no sample in 4,096 batches" in capsys.readouterr().err


def test_shards_without_samples_are_refused_before_anything_starts(shards, tmp_path, capsys):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    (tmp_path / "empty").mkdir()
    with ShardWriter(tmp_path / "empty", 0):
        pass
    with pytest.raises(SystemExit, match="2"):
        dry_run(
            capsys, "demo", f"data.train={tmp_path / 'empty'}", f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}"
        )
    assert "data.train: the shards contain no samples" in capsys.readouterr().err


def test_whatever_prevents_a_run_is_named_by_its_key(shards, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ("data.train=memory://nosuch", "tokenizer.vocabulary=nosuch.json", "model.image.name=nosuch")
    with pytest.raises(SystemExit, match="2"):
        dry_run(capsys, "demo", *words, f"data.cache.folder={tmp_path / 'file' / 'cache'}")
    lines = capsys.readouterr().err.splitlines()
    for key in ("data.train", "tokenizer.vocabulary", "model.image.name"):
        assert sum(f"command line: {key}" in line for line in lines) == 1, lines
    assert any(f"{tmp_path / 'file'} cannot be written: File exists; set data.cache.folder" in line for line in lines)


def test_shards_of_a_disk_need_no_cache(tmp_path):
    (tmp_path / "file").touch()
    cache = CacheConfig(folder=str(tmp_path / "file" / "cache"))
    check_cache(DataConfig(train="shards", cache=cache))
    with pytest.raises(UserError, match="/file cannot be written: .*; set data.cache.folder"):
        check_cache(DataConfig(train=(SourceConfig(shards=("shards", "s3://bucket/shards")),), cache=cache))


def test_a_missing_folder_of_initial_weights_is_one_line(shards, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        dry_run(
            capsys,
            "vit_l_14_336",
            f"data.train={shards}",
            f"model.initial_weights={tmp_path / 'nowhere'}",
            f"run_dir={tmp_path}",
        )
    assert capsys.readouterr().err.splitlines() == [
        f"diptych train: command line: model.initial_weights {tmp_path / 'nowhere'} is not a folder; "
        "give a model folder or a run directory, or null to start from random weights"
    ]


def test_the_table_of_recipes_agrees_with_the_files():
    table = (CONFIGS / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)\.yaml` (\|.*)$", table, re.MULTILINE))
    assert told.keys() == {path.stem for path in CONFIGS.glob("*.yaml")}
    for name, row in told.items():
        config = load_config([CONFIGS / f"{name}.yaml"]).config
        assert f"| {config.model.image.image_size}² |" in row
        assert f"| {config.training.global_batch_size:,} |" in row
        assert float(row.split("|")[-2]) == config.optimizer.learning_rate


def test_the_augmentations_that_the_page_shows_can_be_set(tmp_path):
    page = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "shown.yaml").write_text(shown)
    required = ["data.train=shards", "training.total_samples=1000", "training.global_batch_size=10"]
    data = load_config([tmp_path / "shown.yaml"], required).config.data
    assert (data.horizontal_flip_probability, data.colour_jitter.hue) == (0.5, 0.08)
    named = set(re.findall(r"`((?:data|model)\.[a-z_.]+)[`:]", page))
    assert named <= set(all_keys()) and len(named) > 10


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_recipes_head_comment_is_the_command_that_starts_it(file):
    head = file.read_text(encoding="utf-8").partition("\nrun_dir:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"configs/{file.name}" in head


@pytest.mark.parametrize(
    ("setting", "environment", "told"),
    [
        ("tracking.tensorboard=true", {}, "pip install 'diptych[tensorboard]'"),
        ("tracking.wandb=auto", {"WANDB_MODE": "Offline"}, "it must be online, offline or disabled"),
    ],
)
def test_trackers_that_cannot_work_are_refused_before_the_run(
    shards, tmp_path, capsys, monkeypatch, setting, environment, told
):
    train_vocabulary(["a black square"], 520).save(tmp_path / "vocabulary.json")
    monkeypatch.setattr("diptych.training.checks.find_spec", lambda name: None)
    words = (f"data.train={shards}", f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}", f"run_dir={tmp_path}")
    dry_run(capsys, "demo", *words)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        dry_run(capsys, "demo", *words, setting)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and told in line


ONE_BLOCK = ("model.image.overrides={depth: 1}", "model.text.layers=1")


@pytest.mark.parametrize(
    ("image", "refused"), [("vit_base_patch16_clip_quickgelu_224", False), ("vit_small_patch16_224", True)]
)
def test_a_dry_run_says_which_model_open_clip_cannot_read(shards, tmp_path, capsys, image, refused):
    words = (f"data.train={shards}", f"run_dir={tmp_path / 'run'}", f"model.image.name={image}", *ONE_BLOCK)
    said = dry_run(capsys, "vit_b_32", *words)
    assert ("`diptych export --layout open_clip` will refuse this model: model.image vit_small" in said) == refused


def test_a_dry_run_prints_the_operations_of_each_stage_and_the_memory_of_the_largest(shards, tmp_path, capsys):
    words = [f"data.train={shards}", f"run_dir={tmp_path}", "training.global_batch_size=64"]
    stages = "[{samples: 6.4e8, image_size: 96, context_length: 20, learning_rate_scale: 0.5}, {samples: 64}, {}]"
    plain, staged = (dry_run(capsys, "vit_b_32", *words, *more) for more in ([], [f"training.stages={stages}"]))
    said = [line for line in staged.splitlines() if line.startswith("stages")]
    assert said[0] == (
        "stages    stage 1: 96 pixels, 20 tokens, learning rate x 0.5; 640,000,000 samples of 9.798 GFLOPs, "
        "6.27 EFLOPs (1%)"
    )
    assert said[1].startswith("stages    stage 2: 224 pixels, 77 tokens; 64 samples of 44.33 GFLOPs, 2.84 TFLOPs (0%)")
    assert "None" not in next(line for line in staged.splitlines() if line.startswith("training.stages "))
    assert len(said) == 4 and said[3].startswith("stages    all stages: 545 EFLOPs, 96% of those of the same samples")
    assert [line for line in plain.splitlines() if line.startswith("memory")] == [
        line for line in staged.splitlines() if line.startswith("memory")
    ]


@pytest.mark.parametrize(("name", "refuses"), [("vit_b_32", True), ("demo", False)])
def test_stages_that_torch_cannot_repeat_bit_by_bit_on_a_gpu_are_refused(shards, tmp_path, name, refuses):
    vocabulary = train_vocabulary(["a black square"], 520)
    vocabulary.save(tmp_path / "vocabulary.json")
    words = [
        f"data.train={shards}",
        f"run_dir={tmp_path / 'run'}",
        f"tokenizer.vocabulary={tmp_path / 'vocabulary.json'}",
    ]
    words += ["training.stages=[{samples: 1.28e4, image_size: 32}, {}]", "machine.deterministic=true"]
    config = load_config([CONFIGS / f"{name}.yaml"], words).config
    on_a_gpu, on_a_cpu = (
        [said for _, said in check_run(config, World(device=torch.device(kind)))] for kind in ("cuda", "cpu")
    )
    assert on_a_cpu == []
    assert [said[:41] for said in on_a_gpu] == ["training.stages[0].image_size 32: torch h"] * refuses
