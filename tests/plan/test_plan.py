"""Plans of known models and runs, compared with published numbers."""

import json
from pathlib import Path

import pytest

from diptych.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_plan_fits_80_columns_and_has_a_column_for_each_number_of_gpus(capsys):
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "--gpus", "8,64,512,1024", "--gpu", "H100", "--price", "2.5"])
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "151.28 M parameters" in said and "44.33 GFLOPs" in said and "12.8B samples, 567 EFLOPs" in said
    rows = {line[:25].strip(): line[25:].split() for line in said.splitlines()}
    assert rows["pairs a GPU"] == ["32"], "of the last table"
    assert "8 GPUs: computed with machine.checkpoint_blocks=true" in " ".join(said.split())


def test_the_page_has_plots_and_how_numbers_are_computed(tmp_path, capsys):
    page = tmp_path / "new folder" / "plan.html"
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "--gpus", "8,64,512", "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    for title in ("Days", "GPU-hours", "Samples a second", "GiB of one of 8 GPUs", "ImageNet top-1, %"):
        assert f"<figcaption><span>{title}</span>" in text
    assert "Patarasuk and Yuan" in text and "567 EFLOPs" in text and "http://" not in text and "<script" not in text


def test_what_muon_computes_besides_the_samples_is_said_and_not_counted(capsys):
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "--gpus", "8", "optimizer.name=muon"])
    said = " ".join(capsys.readouterr().out.split())
    # Twelve blocks of each tower, each with 768 or 512 columns: attention's two matrices and the MLP's two.
    flops = 12 * sum(5 * ((3 + 1 + 4 + 4) * 4 + 4 * 2) * width**3 for width in (768, 512))
    assert f"Muon's orthogonalisation is not counted: {flops / 1e9:,.4g} GFLOPs a step" in said
    assert "44.33 GFLOPs" in said and "567 EFLOPs" in said


def test_runs_one_after_another_are_planned_together(capsys):
    # The paper's L/14 and one more epoch on larger pictures.
    words = [str(CONFIGS / "vit_l_14.yaml"), "--then", str(CONFIGS / "vit_l_14_336.yaml"), "--gpus", "64,256"]
    main(["plan", *words, "--json", "--price", "2.5"])
    first, second = json.loads(capsys.readouterr().out)
    assert first["total_samples"] == 12.8e9 and second["total_samples"] == 0.4e9
    assert second["flops_of_sample"] / first["flops_of_sample"] == pytest.approx(1_186 / 526, rel=0.01)
    assert first["accuracies"] and not second["accuracies"], "no fit is of runs that start from weights"
    for plan in (first, second):
        for number, on in zip((64, 256), plan["on_gpus"], strict=True):
            assert on["num_gpus"] == number
            assert on["cost"]["typical"] == pytest.approx(2.5 * 24 * number * on["days"]["typical"])


def test_what_cannot_be_read_is_replaced_and_said(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    words = [
        f"tokenizer.vocabulary={nowhere}.json",
        f"model.initial_weights={nowhere}",
        f"run_dir={tmp_path / 'run'}",
        "training.global_batch_size=16",
    ]
    main(["plan", str(CONFIGS / "demo.yaml"), *words, "--json"])
    said = capsys.readouterr()
    (plan,) = json.loads(said.out)
    assert len(said.err.splitlines()) == 2, said.err
    weights, vocabulary = said.err.splitlines()
    assert "model.initial_weights" in weights and "nowhere.json" in vocabulary and "49,408" in vocabulary
    assert [on["num_gpus"] for on in plan["on_gpus"]] == [8], "64 ranks would have no pair each"
    assert plan["accuracies"] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu", "h1000"], "--gpu h1000: not known; name one of b200, "),
        (["--gpus", "8,x"], "argument --gpus: '8,x'; expected whole numbers with commas, such as 8,64,512"),
        (["--price", "-2"], "argument --price: '-2'; expected a number above zero"),
        (["--page", "/proc/nowhere/plan.html"], "name another file with --page"),
        (["--gpus", "40000"], "training.global_batch_size 32768 cannot be split over 40000 ranks"),
    ],
)
def test_a_mistake_is_one_line(options, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(CONFIGS / "vit_b_32.yaml"), *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_run_in_stages_is_planned_as_its_stages_with_the_settings_of_the_largest(capsys):
    recipe, gpus = str(CONFIGS / "vit_b_16.yaml"), ["--gpus", "8", "--json"]
    stages = "[{samples: 6.4e9, image_size: 112, context_length: 32, patch_dropout: 0.5}, {}]"
    main(["plan", recipe, f"training.stages={stages}", *gpus])
    small, large = json.loads(capsys.readouterr().out)
    main(["plan", recipe, *gpus])
    (whole,) = json.loads(capsys.readouterr().out)
    assert small["stage"] == "stage 1: 112 pixels, 32 tokens, patch dropout 0.5" and whole["stage"] is None
    assert small["total_samples"] + large["total_samples"] == pytest.approx(12.8e9, abs=32_768)
    assert small["num_parameters"] == large["num_parameters"] == whole["num_parameters"]
    assert large["flops_of_sample"] == whole["flops_of_sample"] > 5 * small["flops_of_sample"]
    (on_small,), (on_large,), (on_whole,) = (each["on_gpus"] for each in (small, large, whole))
    assert on_small["memory"] == on_large["memory"] == on_whole["memory"]
    assert on_small["settings"] == on_whole["settings"] == {"checkpoint_blocks": True}
    assert on_large["days"]["typical"] == pytest.approx(on_whole["days"]["typical"] / 2, rel=0.01)
    assert not small["accuracies"] and not large["accuracies"] and whole["accuracies"]
    main(["plan", recipe, f"training.stages={stages}", "--gpus", "8"])
    said = capsys.readouterr().out
    assert "all 2 stages, one after another" in said
    assert "accuracy  not known: the published fits are of runs without stages" in said


def test_a_frozen_tower_costs_no_backward_and_sends_no_gradients(capsys):
    def planned(*words: str) -> dict:
        main(["plan", str(CONFIGS / "vit_b_32.yaml"), *words, "--gpus", "8", "--json"])
        (plan,) = json.loads(capsys.readouterr().out)
        return plan

    whole, locked = planned(), planned('model.freeze=["image.*"]')
    assert whole["num_parameters"] == locked["num_parameters"]
    assert locked["flops_of_sample"] < 0.7 * whole["flops_of_sample"]
    sent, sent_locked = (plan["on_gpus"][0]["communication"]["bytes_sent"] for plan in (whole, locked))
    for what in ("gradients", "weights"):
        # The image tower has 88 M of the 151 M parameters.
        assert sent_locked[what] / sent[what] == pytest.approx(63.4 / 151.3, abs=0.01)
    assert whole["accuracies"] and not locked["accuracies"], "no fit is of runs with a frozen tower"


@pytest.mark.parametrize(
    ("word", "is_known"),
    [
        ("optimizer.learning_rate=1e-3", True),
        ("model.image.initial_weights=tower.safetensors", False),
        ("loss.name=bag_of_words", False),
        ("model.image.overrides.patch_drop_rate=0.5", False),
    ],
)
def test_only_runs_like_those_that_were_fitted_have_an_expected_accuracy(capsys, word, is_known):
    main(["plan", str(CONFIGS / "vit_b_16.yaml"), word, "--gpus", "8", "--json"])
    (plan,) = json.loads(capsys.readouterr().out)
    assert bool(plan["accuracies"]) is is_known


def test_outputs_for_ngrams_are_said_not_to_be_counted(capsys):
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "loss.name=visual_ngrams", "--gpus", "8"])
    assert "each of them adds an output, which is not counted here" in capsys.readouterr().err


def test_a_frozen_bias_of_the_sigmoid_loss_is_known(capsys):
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "loss.name=sigmoid", "model.freeze=[logit_bias]", "--gpus", "8"])
    assert "151.28 M parameters" in capsys.readouterr().out
