"""Plans of known models and runs, compared with published numbers."""

from pathlib import Path

import pytest

from diptych.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_plan_fits_80_columns_and_has_a_column_for_each_number_of_gpus(capsys):
    main(["plan", str(CONFIGS / "vit_b_32.yaml"), "--gpus", "8,64", "--gpu", "H100"])
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "151.28 M parameters" in said and "44.33 GFLOPs" in said
    assert "set machine.checkpoint_blocks=true" in " ".join(said.split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu", "h1000"], "--gpu h1000: not known; name one of b200, "),
        (["--gpus", "8,x"], "argument --gpus: '8,x'; expected whole numbers with commas, such as 8,64,512"),
        (["--gpus", "40000"], "training.global_batch_size 32768 cannot be split over 40000 ranks"),
    ],
)
def test_a_mistake_is_one_line(options, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(CONFIGS / "vit_b_32.yaml"), *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
