"""The demo in a folder where one has been."""

import pytest

from diptych.cli import main
from diptych.verbs.demo import claim


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
