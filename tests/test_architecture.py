"""The rules of the tree, checked by reading the imports."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import indent

import pytest

from diptych.cli import VERBS

ROOT = Path(__file__).parents[1]
SOURCES = {
    "diptych": ROOT / "src" / "diptych",
    "diptych_shards": ROOT / "data_prep" / "diptych_shards",
}
LAYERS = [
    ("verbs", "cli", "torchrun", "__main__"),
    ("training", "inspection", "plan", "drill", "side_by_side"),
    ("evaluation", "report", "learning_curves", "encoder", "model_folder", "mteb", "demo") + ("clustering",),
    ("data", "model", "loss"),
    ("config", "world", "process_group", "agreement", "run_dir", "checkpoint_folder")
    + (
        "command_line",
        "terminal",
        "wandb_run",
        "pages",
        "files",
        "locks",
        "daemon_threads",
        "remote_files",
        "machine",
        "device",
        "slurm",
        "documents",
        "yaml_documents",
        "tensor_files",
        "tensor_hashes",
        "errors",
        "extras",
    ),
]
HOMES = {
    "deepspeed": {"training/engine.py", "training/towers.py", "training/deepspeed_config.py"},
    "wandb": {"wandb_run.py", "training/wandb_follower.py", "training/wandb_results.py"},
    "timm": {"model/image_tower.py", "model/trunk.py", "model/trunk_initialisation.py"},
    "webdataset": {"data/loader.py"},
    "fsspec": {"remote_files.py"},
    "braceexpand": {"data/shard_locations.py"},
    "ftfy": {"data/captions.py"},
    "mteb": {"mteb.py"},
    "simplejpeg": {"data/picture_pixels.py"},
    "regex": {"data/tokenizer.py", "data/tokenizer_files.py", "data/captions.py", "training/typeface.py"},
    "tokenizers": {"data/tokenizer.py"},
    "pydantic": {"config/typed.py", "training/deepspeed_config.py"},
    "sklearn": {"evaluation/logistic_regression.py"},
    "jinja2": {"pages/template.py"},
    "resvg_py": {"demo/cards.py"},
    "faiss": {"clustering.py"},
}
TORCH_FREE = [
    "shards",
    "shard_index_file",
    "shard_table",
    "shard_list",
    "shard_locations",
    "cache_room",
    "shard_cache",
    "shards_ahead",
    "shard_download",
    "remote_shards",
    "shard_writer",
    "foreign_shards",
    "tar_scan",
    "order",
    "earlier_order",
    "mixture",
    "source_order",
    "groups",
    "unique_captions",
    "caption_exchange",
    "proportions",
    "captions",
    "caption_files",
    "avif_boxes",
    "colour_profile",
    "draws",
    "exif",
    "jpeg_segments",
    "picture_files",
    "picture_formats",
    "picture_pixels",
    "picture_rgb",
    "picture_safety",
    "png_chunks",
    "tiff_page",
]


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCES[package].rglob("*.py")):
        yield str(path.relative_to(SOURCES[package])), path


@cache
def imports(path: Path) -> set[str]:
    """The dotted name of every module that the file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def test_imports_point_one_way():
    wrong = []
    for name, path in modules("diptych"):
        part = name.split("/")[0].removesuffix(".py")
        for imported in imports(path):
            words = imported.split(".")
            if words[0] != "diptych" or len(words) < 2 or layer(part) is None or layer(words[1]) is None:
                continue
            up = layer(words[1]) < layer(part)
            aside = part != words[1] and {part, words[1]} <= {"data", "model", "loss"}
            if up or aside:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_module_has_a_place_in_the_layers():
    parts = {name.split("/")[0].removesuffix(".py") for name, _ in modules("diptych")} - {"__init__"}
    assert parts == {part for parts in LAYERS for part in parts}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library):
    users = {name for name, path in modules("diptych") if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= HOMES[library]
    assert users, f"{library} has no home any more"


def test_shard_building_uses_only_the_torch_free_part_of_data():
    parts = (
        "pages",
        "command_line",
        "documents",
        "errors",
        "extras",
        "files",
        "locks",
        "machine",
        "remote_files",
        "terminal",
    )
    flat = {f"diptych.{part}" for part in (*parts, "wandb_run")}
    allowed = {"diptych", "diptych.__version__", "diptych.data", *(f"diptych.data.{name}" for name in TORCH_FREE)}
    used = {i for _, path in modules("diptych_shards") for i in imports(path) if i.split(".")[0] == "diptych"}
    in_flat = {i for i in used if ".".join(i.split(".")[:2]) in flat}
    assert {".".join(i.split(".")[:3]) for i in used - in_flat} <= allowed


def test_of_shard_building_evaluation_uses_tables_and_the_search_for_copies_and_nothing_else_does_anything():
    used = {
        (name.split("/")[0], ".".join(imported.split(".")[:2]))
        for name, path in modules("diptych")
        for imported in imports(path)
        if imported.split(".")[0] == "diptych_shards"
    }
    parts = ("tables", "select", "run")
    assert used == {("evaluation", f"diptych_shards.{part}") for part in parts}


HEAVY = {"torch", "webdataset", "wandb"}


def assert_loads_nothing_heavy(each: str, words: list[str]) -> None:
    """Run code in a new process with `word` set to each of the words, and look after each what was loaded."""
    report = f"print('@', word, {HEAVY} & set(sys.modules))"
    code = "import sys\nfor word in sys.argv[1:]:\n" + indent(f"{each}\n{report}", "  ")
    said = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True).stdout
    assert [line for line in said.splitlines() if line.startswith("@")] == [f"@ {word} set()" for word in words]


def test_importing_loads_neither_torch_nor_webdataset():
    top = ("diptych", "diptych.cli", "diptych.documents", "diptych.pages.charts", "diptych.pages.thumbnail")
    of_shards = ("diptych_shards.cli", "diptych_shards.tables.picture_table")
    assert_loads_nothing_heavy("__import__(word)", [*top, *of_shards, *(f"diptych.data.{name}" for name in TORCH_FREE)])


def test_help_loads_neither_torch_nor_webdataset():
    ask = "import diptych.cli\ntry: diptych.cli.main([*word.split(), '--help'])\nexcept SystemExit: pass"
    assert_loads_nothing_heavy(ask, [*VERBS, "data stats", "data preview"])


def test_nothing_is_unpickled():
    for package in SOURCES:
        for name, path in modules(package):
            text = path.read_text(encoding="utf-8")
            found = re.search(r"\bimport pickle\b|\btorch\.load\(|weights_only|(?<![.\w])(eval|exec)\(", text)
            assert found is None, f"{name} says {found.group()}"


def test_files_are_hashed_in_one_place():
    hashing = {name for name, path in modules("diptych") if "hashlib.sha256()" in path.read_text(encoding="utf-8")}
    # Shards and checkpoints are hashed while they are written; shards of other tools while they are indexed.
    writers = {"data/shard_writer.py", "training/checkpoint_writer.py"}
    assert hashing == {"files.py", "data/foreign_shards.py", *writers}


def test_a_table_is_written_once():
    homes: dict[str, list[str]] = {}
    for package in SOURCES:
        for name, path in modules(package):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                value = getattr(statement, "value", None)
                if isinstance(value, ast.Dict) and len(value.keys) > 1:
                    homes.setdefault(ast.dump(value), []).append(name)
    assert [names for names in homes.values() if len(names) > 1] == []
