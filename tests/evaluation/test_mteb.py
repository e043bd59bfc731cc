"""mteb's runner takes our models: its tasks without downloads, of pictures, of texts, and of both.

It needs mteb, in an environment of its own: CONTRIBUTING.md.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.drill.small_run import COLOURS
from diptych.extras import pip_install
from diptych.model_folder import save_model_folder
from tests.test_encoder import TOKENIZER, dual_encoder, model_config

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="it is not installed")
# Of mteb and the libraries that it loads.
pytestmark = pytest.mark.filterwarnings("default")

TASKS = {
    "MockZeroShotClassification",
    "MockAny2AnyRetrievalI2T",
    "MockAny2AnyRetrievalT2I",
    "MockImageTextPairClassification",
    "MockVisionCentricQA",  # its queries are a picture and a text
    "MockImageClassification",
    "MockRetrievalTask",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model_folder(tmp_path / "colours", dual_encoder(model_config()).state_dict(), model_config(), TOKENIZER)
    return tmp_path / "colours"


@needs_mteb
def test_mteb_runs_its_mock_tasks_of_pictures_and_texts(folder):
    import mteb

    import diptych.mteb

    run = mteb.mock_run(diptych.mteb.load(folder, "cpu"))
    done = {name: result for name, result in run.items() if result is not None}
    assert {name: type(result) for name, result in done.items() if not isinstance(result, mteb.TaskResult)} == {}
    assert TASKS <= done.keys()


@needs_mteb
def test_mteb_gets_the_embeddings_of_pictures_of_texts_and_the_sum_of_both(folder):
    import diptych.mteb

    model, encoder = diptych.mteb.load(folder, "cpu"), diptych.load(folder, "cpu")
    pictures = [Image.new("RGB", (20 + 10 * n, 30), colour) for n, colour in enumerate(COLOURS.values())]
    images, texts = encoder.embed_pictures(pictures), encoder.embed_texts(list(COLOURS))

    def batches(**columns: list[Any]) -> list[dict[str, list[Any]]]:
        return [{name: values[first : first + 3] for name, values in columns.items()} for first in (0, 3)]

    assert torch.allclose(model.encode(batches(image=pictures)), images, atol=1e-6)
    assert torch.allclose(model.encode(batches(text=list(COLOURS), id=list("abcd"))), texts, atol=1e-6)
    assert torch.allclose(model.encode(batches(image=pictures, text=list(COLOURS))), images + texts, atol=1e-6)
    with pytest.raises(ValueError, match="got audio; this model embeds image and text"):
        model.encode([{"audio": [1]}])


@needs_mteb
def test_results_are_kept_by_the_weights(folder, tmp_path):
    import diptych.mteb

    other = tmp_path / "other" / "colours"
    save_model_folder(other, dual_encoder(model_config(), seed=1).state_dict(), model_config(), TOKENIZER)
    one, two = (diptych.mteb.load(each, "cpu").mteb_model_meta for each in (folder, other))
    assert one.name == two.name == "diptych/colours"
    assert one.revision != two.revision


def test_without_mteb_one_line_says_what_installs_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb" or name == "diptych.mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        import diptych.mteb  # noqa: F401
    assert "\n" not in str(missing.value) and str(missing.value).endswith(pip_install("mteb"))
