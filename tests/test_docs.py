"""The programs of docs/api.md, and the search of the README, run as they are written."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli import main
from diptych.model_folder import save_model_folder
from tests.test_encoder import TOKENIZER, dual_encoder, model_config

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
README = Path(__file__).parents[1] / "README.md"
COLOURS = {"cat": "orange", "dog": "brown"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files that the programs name."""
    monkeypatch.chdir(tmp_path)
    save_model_folder(Path("model"), dual_encoder(model_config()).state_dict(), model_config(), TOKENIZER)
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (32, 32), colour)
        for path in (f"{name}.png", f"labelled/{name}/1.png", f"captioned/{name}.png"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        Path(f"captioned/{name}.txt").write_text(f"a {name}")
    return tmp_path


def test_the_programs_of_the_api_page_run(folder, capsys):
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    for program in programs:
        exec(compile(program, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert names["probabilities"].shape == (2, 2)
    assert "00000.tar/cat ('png', 'txt') a cat" in printed
    assert "'top1':" in printed
    assert names["status"] == 0


def test_the_search_of_the_readme_runs(folder, capsys):
    Path("model").rename("clip")
    Path("captioned").rename("my_photos")
    Image.open("cat.png").save("cat.jpg")
    page = README.read_text(encoding="utf-8")
    commands = re.findall(r"^    diptych ((?:classify|embed) clip .*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for words in map(shlex.split, commands):
        main(words)
    program = re.search(r"^    import diptych, numpy\n.*?(?=^\S)", page, re.MULTILINE | re.DOTALL)
    assert program
    capsys.readouterr()
    exec(compile(textwrap.dedent(program[0]), str(README), "exec"), {})
    found = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in found} == {f"my_photos/{name}.png" for name in COLOURS}
