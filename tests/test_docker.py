"""What can be checked of the Dockerfile without building it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path

import pytest

from diptych import cli
from tests.commands import lint

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, its words) in order, without comments and line continuations."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, words) for name, _, words in (line.partition(" ") for line in lines)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, after those of the stages that it is built on."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, words in instructions():
        if instruction == "FROM":
            below, _, name = words.partition(" AS ")
            found[name] = list(found.get(below, []))
        elif name:
            found[name].append((instruction, words))
    return found


def last(stage: str, instruction: str) -> str:
    return [words for name, words in stages()[stage] if name == instruction][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps the path from the build."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]
    above = [path[: match.start()] for match in re.finditer("/", f"{path}/")]
    return any(fnmatch.fnmatchcase(f"/{part}", f"/{rule}".replace("/**/", "*/")) for part in above for rule in rules)


def test_hadolint_finds_no_fault():
    lint("hadolint", ROOT / "Dockerfile")


def test_the_base_image_is_the_builders_choice():
    assert instructions()[0][0] == "ARG" and instructions()[0][1].startswith("BASE=")
    assert instructions()[1] == ("FROM", "${BASE} AS source")
    assert re.fullmatch(r"BASE=\S+:\S*\d\S*", instructions()[0][1]), "a tag with a version, so not `latest`"


def test_there_is_a_stage_to_test_and_the_stage_to_run_is_what_a_plain_build_makes():
    assert list(stages()) == ["source", "shards", "installed", "test", "run"]


@pytest.mark.parametrize("stage", ["shards", "test", "run"])
def test_a_container_is_nobodys_root(stage):
    user = last(stage, "USER")
    assert user.isdigit() and user != "0"
    assert f"--uid {user} " in next(words for name, words in stages()["installed"] if "useradd" in words)


def test_signals_reach_the_trainer_and_not_a_shell():
    assert json.loads(last("run", "ENTRYPOINT")) == ["diptych"]
    assert f"diptych = {cli.main.__module__}:main" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert json.loads(last("shards", "ENTRYPOINT")) == ["diptych-shards"]
    assert json.loads(last("test", "ENTRYPOINT"))[:3] == ["python", "-m", "pytest"]


def test_all_that_is_copied_is_there_and_not_ignored():
    copied = [shlex.split(words)[:-1] for name, words in instructions() if name == "COPY"]
    for path in [path for paths in copied for path in paths if path != "."]:
        assert (ROOT / path).exists() and not ignored(path), path


@pytest.mark.parametrize("package", ["src/diptych", "data_prep/diptych_shards"])
def test_no_source_or_test_is_ignored(package):
    files = [*(ROOT / package).rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert not [file for file in files if ignored(str(file.relative_to(ROOT)))]


PRIVATE = (
    ".git/config",
    "runs/demo/metrics.jsonl",
    "shards/00000.tar",
    ".env",
    ".venv/bin/python",
    "src/a/__pycache__",
)


@pytest.mark.parametrize("path", PRIVATE)
def test_data_and_secrets_stay_outside(path):
    assert ignored(path)
