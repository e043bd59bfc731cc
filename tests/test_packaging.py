"""What an install brings: requirements against imports, and the line that names what is missing."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import diptych
from diptych import extras
from tests.test_architecture import ROOT, SOURCES, imports, modules

NAMES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}
"""Modules whose distribution has another name."""
USE_OF_A_MODEL = ["encoder", *(f"verbs.{verb}" for verb in ("classify", "embed", "evaluate", "export", "vocab"))]
GUARDED = {"faiss-cpu", "pillow-heif", "ray", "wandb"}
"""Libraries whose absence has a line of its own where they are used."""


@cache
def project(folder: str = ".") -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / folder / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def by_name(requirements: Iterable[str]) -> dict[str, str]:
    return {re.split(r"[^\w-]", text)[0].lower(): text for text in requirements}


def base(folder: str = ".") -> dict[str, str]:
    return by_name(lines(project(folder)["options"]["install_requires"]))


def extras_of(folder: str = ".") -> dict[str, list[str]]:
    return {name: lines(text) for name, text in project(folder)["options.extras_require"].items()}


def extra(name: str) -> dict[str, str]:
    return by_name(extras_of()[name])


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
    used = libraries(f"diptych.{name}" for name in USE_OF_A_MODEL)
    assert used - GUARDED - {"cykooz-resizer"} == set(base()) - {"torchvision"}  # `evaluate --overlap` resizes by it


def test_an_install_of_the_data_side_builds_shards_and_has_no_torch():
    starts = [f"diptych_shards.{name.removesuffix('.py').replace('/', '.')}" for name, _ in modules("diptych_shards")]
    # `diptych` itself names the encoder, for `diptych.load`.
    encoder = {"torch", "torchvision", "timm", "safetensors", "tokenizers"}
    required = base("data_prep")
    assert libraries(starts) - encoder - GUARDED == set(required)


def test_the_two_distributions_require_the_same_versions():
    shards = base("data_prep")
    assert shards == {name: {**base(), **extra("shards")}[name] for name in shards}
    assert set(extra("shards")) <= set(shards)
    optional = extras_of("data_prep")
    assert optional == {name: extras_of()[name] for name in optional}


def test_training_needs_its_extra_and_no_other():
    used = libraries(["diptych.verbs.train", "diptych.verbs.drill"])
    assert set(extra("train")) <= used <= set(base()) | set(extra("train")) | GUARDED


def installed_as(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of a distribution, as its setup.cfg would give it."""
    folder = "." if name == "diptych" else "data_prep"
    optional = [f'{text}; extra == "{extra}"' for extra, texts in extras_of(folder).items() for text in texts]
    required = [*base(folder).values(), *optional]
    monkeypatch.setattr(importlib.metadata, "requires", lambda asked: required if asked == name else None)
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
    assert (
        project()["metadata"]["version"] == project("data_prep")["metadata"]["version"] == "attr: diptych.__version__"
    )


@pytest.mark.parametrize("folder", [".", "data_prep"])
def test_every_package_is_shipped(folder):
    roots = {name: path.parent for name, path in SOURCES.items()}
    found = {
        ".".join(file.parent.relative_to(roots[name]).parts)
        for name, path in SOURCES.items()
        for file in path.rglob("__init__.py")
    }
    assert lines(project(folder)["options"]["packages"]) == sorted(found)
