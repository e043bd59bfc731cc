"""The demo in a folder with an earlier demo."""

import sys
from pathlib import Path

import pytest

from diptych.cli import main
from diptych.verbs.demo import claim, find_config, how_to_activate


def test_a_demo_of_another_seed_is_one_line_and_touches_nothing(tmp_path, capsys):
    data = tmp_path / "data"
    claim(data, 0)
    claim(data, 0)
    (data / "cards").mkdir()
    (data / "cards" / "0.png").write_bytes(b"a card of seed 0")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        main(["demo", str(tmp_path), "--seed", "1"])
    assert caught.value.code == 2
    told = f"diptych demo: {tmp_path} holds the demo of seed 0, not of 1; name another folder\n"
    assert capsys.readouterr() == ("", told)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_recipe_is_found_without_the_source_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config().read_bytes() == (Path(__file__).parents[1] / "configs" / "demo.yaml").read_bytes()


def test_the_last_lines_say_how_to_put_the_commands_on_the_path(monkeypatch):
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", "/nowhere")
    assert str(programs) in how_to_activate()
    monkeypatch.setenv("PATH", str(programs))
    assert how_to_activate() == ""
