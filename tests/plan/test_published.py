"""Each formula of a plan, compared with published runs and numbers."""

from functools import lru_cache

import pytest

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.model.flops import TrainingFlops
from diptych.plan.accuracy import IMAGENET, RETRIEVAL, expected_accuracy, gmac_of
from diptych.plan.failures import GPU_HOURS_OF_FAILURE, saving, young
from diptych.plan.gpus import GPUS
from diptych.plan.loading import loading
from diptych.plan.speed import UTILISATIONS, speed

TEXT = {"b": (512, 8, 12), "l": (768, 12, 12), "h": (1024, 16, 24), "g": (1024, 16, 24)}
"""Size → width, heads and layers of the text tower."""
NAMES = {
    "b/32": "vit_base_patch32_clip_224",
    "b/16": "vit_base_patch16_clip_224",
    "l/14": "vit_large_patch14_clip_224",
    "h/14": "vit_huge_patch14_clip_224",
    "g/14": "vit_giant_patch14_clip_224",
}


@lru_cache
def flops(model: str, image_size: int = 224, num_tokens: int = 77) -> int:
    width, heads, layers = TEXT[model[0]]
    config = ModelConfig(
        embed_dim=width,
        image=ImageTowerConfig(name=NAMES[model], image_size=image_size),
        text=TextTowerConfig(width=width, heads=heads, layers=layers),
    )
    return TrainingFlops(config, 49_408).of_pair(num_tokens)


def gpu_hours(flops_of_sample: float, samples: float, case: str, *, repeats: int = 0) -> float:
    """On A100s that are neither too many nor badly connected."""
    one = speed(
        GPUS["a100-80"],
        1,
        pairs_of_rank=256,
        global_batch_size=256,
        flops_of_sample=flops_of_sample,
        repeats=repeats,
        launch_seconds=0,
        communication_seconds=0,
        utilisation=UTILISATIONS[case],
    )
    return samples / one.samples_per_second / 3600


@pytest.mark.parametrize(
    ("model", "samples", "repeats", "hours"),
    [
        # open_clip's docs/PRETRAINED.md
        ("b/32", 12.8e9, 0, 4_600),
        ("b/16", 13.0e9, 0, 10_700),
        ("l/14", 12.8e9, 1, 50_800),
        # The table of arXiv 2212.07143.
        ("l/14", 32e9, 1, 122_509),
        ("l/14", 13e9, 0, 20_393),
        ("h/14", 34.7e9, 1, 229_665),
        ("g/14", 12.2e9, 1, 109_392),
    ],
)
def test_published_runs_took_as_long_as_planned(model, samples, repeats, hours):
    most, least = (gpu_hours(flops(model), samples, case, repeats=repeats) for case in ("low", "high"))
    assert least < hours < 1.01 * most


@pytest.mark.parametrize(
    ("model", "image_size", "hours"), [("l/14", 84, 4_008), ("h/14", 70, 5_920), ("h/14", 84, 7_776)]
)
def test_clipas_runs_took_as_long_as_the_plan_of_both_stages(model, image_size, hours):
    # CLIPA-v2 (arXiv 2306.15658, its repository's table): 12.8 G samples of small pictures and 8 tokens, then 512 M of
    # 224 pixels and 32 tokens.
    stages = [(flops(model, image_size, 8), 12.8e9), (flops(model, 224, 32), 0.512e9)]
    most, least = (sum(gpu_hours(*stage, case) for stage in stages) for case in ("low", "high"))
    assert least < hours < most


def test_nemos_speed_is_the_typical_one():
    # NVIDIA NeMo's page on CLIP: g/14 on H100 at 188 to 204 TFLOP/s a GPU.
    assert 188e12 < UTILISATIONS["typical"] * GPUS["h100"].peak_flops < 204e12


def test_the_papers_largest_run_has_the_operations_that_its_days_allow():
    # L/14: 12 days on 256 V100 of 125 TFLOP/s; 20 % of their peak.
    seen = flops("l/14") * 12.8e9
    assert seen / (12 * 86_400 * 256 * 125e12) == pytest.approx(0.20, abs=0.01)
    # and one more epoch of 400 M at 336 pixels: 7,206 exaFLOPs in all
    assert seen + flops("l/14", 336) * 0.4e9 == pytest.approx(7_206e18, rel=0.002)


@pytest.mark.parametrize(
    ("model", "samples", "accuracy"),
    [("b/32", 34e9, 0.665), ("b/16", 34e9, 0.702), ("l/14", 32e9, 0.752), ("h/14", 34e9, 0.780), ("g/14", 12e9, 0.767)],
)
def test_accuracies_of_laions_runs_are_the_expected_ones(model, samples, accuracy):
    expected = {
        each.data: each for each in expected_accuracy(gmac_of(flops(model)), samples) if "ImageNet" in each.task
    }
    fit = expected["LAION-2B"]
    assert fit.uncertainty is not None
    assert fit.accuracy == pytest.approx(accuracy, abs=2 * fit.uncertainty)


@pytest.mark.parametrize(("model", "accuracy"), [("b/32", 0.633), ("b/16", 0.6835), ("l/14", 0.755)])
def test_accuracies_of_openais_models_are_the_expected_ones(model, accuracy):
    gmac = gmac_of(flops(model))
    assert IMAGENET["OpenAI's WIT"].accuracy(gmac, 12.8e9) == pytest.approx(accuracy, abs=0.006)


def test_retrieval_of_clip_and_open_clip_is_the_expected_one():
    # Recall at 5 of MS COCO's pictures: OpenAI's L/14 61.1 % (arXiv 2212.07143), LAION-2B's L/14 71.1 %.
    gmac = gmac_of(flops("l/14"))
    assert RETRIEVAL["OpenAI's WIT"].accuracy(gmac, 12.8e9) == pytest.approx(0.611, abs=0.01)
    assert RETRIEVAL["LAION"].accuracy(gmac, 32e9) == pytest.approx(0.711, abs=0.02)


def test_nothing_is_expected_of_a_run_outside_of_the_fits():
    assert expected_accuracy(7.4, 12.8e9)
    assert expected_accuracy(7.4, 1e9) == expected_accuracy(0.074, 12.8e9) == ()


def test_failures_are_those_of_llama_3():
    # 419 unexpected interruptions in 54 days: one in 3.1 hours on 16,384 GPUs.
    assert saving(4, 12, 16_384).hours_between_failures == pytest.approx(3.1, abs=0.05)
    assert GPU_HOURS_OF_FAILURE / 512 == pytest.approx(99, abs=0.5)


def test_the_interval_between_checkpoints_loses_least_time():
    # 1,024 GPUs fail every 49 hours; a save that stalls for 20 s should come every 44 minutes, one of 2 s every 14.
    between = GPU_HOURS_OF_FAILURE / 1024 * 3600
    assert young(20, between) / 60 == pytest.approx(44, abs=1)
    assert young(2, between) / 60 == pytest.approx(14, abs=0.5)

    def lost(interval: float) -> float:
        return 20 / interval + interval / 2 / between

    best = lost(young(20, between))
    assert best < lost(1.2 * young(20, between)) and best < lost(young(20, between) / 1.2)


def test_the_measured_save_of_a_large_model_takes_as_long():
    assert saving(427_620_000 * 4, 427_620_000 * 8, 1).write_seconds == pytest.approx(10, abs=0.5)


def test_larger_pictures_need_more_cores():
    assert loading(71_000, 224).cores == pytest.approx(55, abs=1)
    assert loading(71_000, 448).cores == pytest.approx(220, abs=1)
    assert loading(71_000, 448, samples_per_core_second=710).cores == 100
    small, large = (loading(71_000, size, largest_size=224) for size in (112, 224))
    assert small.bytes_per_second == large.bytes_per_second, "of the same shards"
    assert large.cores / 2 < small.cores < large.cores
