"""What an install brings: requirements against imports, and the line that names what is missing."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych import extras
from tests.test_architecture import ROOT, SOURCES, imports, modules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}
"""Modules whose distribution has another name."""
USE_OF_A_MODEL = ["encoder", *(f"verbs.{verb}" for verb in ("classify", "embed", "evaluate", "export", "vocab"))]
GUARDED = {"faiss-cpu", "pillow-heif", "ray", "wandb"}
"""Libraries whose absence has a line of its own where they are used."""


@cache
def project(folder: str = ".") -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def by_name(requirements: Iterable[str]) -> dict[str, str]:
    return {re.split(r"[^\w-]", text)[0].lower(): text for text in requirements}


def base() -> dict[str, str]:
    return by_name(project()["dependencies"])


def extra(name: str) -> dict[str, str]:
    return by_name(project()["optional-dependencies"][name])


def path_of(module: str) -> Path | None:
    package, *parts = module.split(".")
    found = SOURCES[package].joinpath(*parts)
    return next((path for path in (found.with_suffix(".py"), found / "__init__.py") if path.is_file()), None)


def libraries(starts: Iterable[str]) -> set[str]:
    """Distributions of all that these modules import, and the modules of ours that they import."""
    seen: dict[str, set[str]] = {}
    waiting = [*starts]
    while waiting:
        module = waiting.pop()
        path = path_of(module)
        if path is not None and module not in seen:
            seen[module] = imports(path) - {""}
            waiting += [name for name in seen[module] if name.split(".")[0] in SOURCES]
    found = {name.split(".")[0] for names in seen.values() for name in names}
    return {NAMES.get(name, name.replace("_", "-").lower()) for name in found - sys.stdlib_module_names - set(SOURCES)}


def test_an_install_of_the_base_uses_a_model():
    assert libraries(f"diptych.{name}" for name in USE_OF_A_MODEL) - GUARDED == set(base()) - {"torchvision"}


def test_an_install_of_the_data_side_builds_shards_and_has_no_torch():
    starts = [f"diptych_shards.{name.removesuffix('.py').replace('/', '.')}" for name, _ in modules("diptych_shards")]
    # `diptych` itself names the encoder, for `diptych.load`.
    encoder = {"torch", "torchvision", "timm", "safetensors", "tokenizers"}
    required = by_name(project("data_prep")["dependencies"])
    assert libraries(starts) - encoder - GUARDED == set(required)


def test_the_two_distributions_require_the_same_versions():
    shards = by_name(project("data_prep")["dependencies"])
    assert shards == {name: {**base(), **extra("shards")}[name] for name in shards}
    assert set(extra("shards")) <= set(shards)
    optional = project("data_prep")["optional-dependencies"]
    assert optional == {name: project()["optional-dependencies"][name] for name in optional}


def test_training_needs_its_extra_and_no_other():
    used = libraries(["diptych.verbs.train"])
    assert set(extra("train")) <= used <= set(base()) | set(extra("train")) | GUARDED


def installed_as(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of a distribution, as its pyproject.toml would give it."""
    table = project("." if name == "diptych" else "data_prep")
    optional = table["optional-dependencies"].items()
    lines = [*table["dependencies"], *(f'{text}; extra == "{extra}"' for extra, texts in optional for text in texts)]
    monkeypatch.setattr(importlib.metadata, "requires", lambda asked: lines if asked == name else None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda *, name: [1] * (name == wanted))
    wanted = name


@pytest.mark.parametrize("name", ["shards", "train"])
def test_a_library_of_an_extra_that_is_missing_is_one_line_that_names_it(name, monkeypatch):
    installed_as("diptych", monkeypatch)
    for library in extra(name).keys() - base().keys():
        missing = ModuleNotFoundError(name=f"{library.replace('-', '_')}.part")
        assert extras.way_out(missing) == f"{library.replace('-', '_')} is not installed; pip install 'diptych[{name}]'"


@pytest.mark.parametrize(
    ("distribution", "library", "line"),
    [
        ("diptych", "torch", "torch is not installed; pip install diptych"),
        ("diptych-shards", "torch", "torch is not installed; pip install diptych"),
        ("diptych-shards", "pycurl", "pycurl is not installed; pip install diptych-shards"),
        ("diptych-shards", "ray", "ray is not installed; pip install 'diptych-shards[ray]'"),
        ("diptych", "nothing_of_ours", None),
    ],
)
def test_what_to_install_depends_on_what_is_installed(distribution, library, line, monkeypatch):
    installed_as(distribution, monkeypatch)
    assert extras.way_out(ModuleNotFoundError(name=library)) == line


WITHOUT = """
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""


def without(library: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where a library is not installed."""
    code = WITHOUT.format(library=library) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_shard_building_without_its_libraries_is_one_line_and_status_2():
    code = "from diptych_shards.cli import main\nsys.exit(main(['build', 'a.csv', 'out']))"
    done = without("pycurl", code)
    assert done.returncode == 2
    assert re.fullmatch(r"diptych-shards: pycurl is not installed; pip install \S+\n", done.stderr)


def test_a_library_that_is_missing_for_another_reason_keeps_its_traceback():
    code = "from diptych_shards.cli import main\nsys.exit(main(['build', 'a.csv', 'out']))"
    done = without("shlex", code)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")


def test_the_encoder_without_torch_says_what_to_install():
    done = without("torch", "import diptych\ntry: diptych.load\nexcept ModuleNotFoundError as error: print(error)")
    assert done.stdout == "diptych.load: torch is not installed; pip install diptych\n"


def test_one_version_for_both_distributions_and_the_crawler():
    from diptych_shards.fetch.options import DEFAULT_USER_AGENT

    assert DEFAULT_USER_AGENT == f"diptych-shards/{diptych.__version__}"
    assert project()["dynamic"] == ["version"] and project("data_prep")["dynamic"] == ["version"]
