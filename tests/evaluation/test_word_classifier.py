"""Models that predict words: saved, loaded and measured by the commands."""

import json

import numpy as np
import pytest
import torch

from diptych import cli
from diptych.encoder import WordEncoder, load_to_measure
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords
from diptych.model.word_predictor import WordPredictor
from diptych.model_folder import WEIGHTS_FILE, describing_files
from diptych.tensor_files import save_tensors
from tests.evaluation.colours import COLOURS, write_tree
from tests.evaluation.test_verbs import captioned, fails
from tests.test_encoder import TOKENIZER, model_config

WORDS = {
    "bag_of_words": BagOfWords(TOKENIZER.vocab_size),
    "visual_ngrams": VisualNgrams(TOKENIZER.vocab_size, [[97, 98], [97, 114], [98, 99]], 3, 0.3),
}


@pytest.fixture(params=WORDS)
def folder(request, tmp_path):
    words, path = WORDS[request.param], tmp_path / request.param
    torch.manual_seed(0)
    model = WordPredictor(model_config(), words.num_outputs)
    model.words.weight.data.mul_(100)  # so that pictures differ more than words do
    path.mkdir()
    save_tensors(model.state_dict(), path / WEIGHTS_FILE)
    for name, text in describing_files(model_config(), TOKENIZER, words).items():
        (path / name).write_text(text, encoding="utf-8")
    return path


def test_zero_shot_chooses_the_class_whose_words_are_most_probable(folder, tmp_path, capsys):
    tree = write_tree(tmp_path / "pictures", list(COLOURS), copies=2)
    (tmp_path / "classes.yaml").write_text(f'classes: [{", ".join(COLOURS)}]\ntemplates: ["a {{}}", "{{}} wall"]')
    cli.main(
        f"evaluate {folder} --zero-shot {tree} --linear-probe {tree} --classes {tmp_path}/classes.yaml "
        f"--json {tmp_path}/numbers.json --device cpu".split()
    )
    evaluation = json.loads((tmp_path / "numbers.json").read_text())
    result = evaluation["zero_shot"]["pictures"]
    encoder = load_to_measure(folder, "cpu")
    assert isinstance(encoder, WordEncoder)
    classes = list(COLOURS)
    pictures = [tree / name for name, _, _ in result["predictions"]]
    features = encoder.embed_pictures(pictures).numpy()
    each = [encoder.scores(features, [template.format(name) for name in classes]) for template in ("a {}", "{} wall")]
    guesses = np.mean(each, axis=0).argmax(axis=1)
    assert [guess for _, _, guess in result["predictions"]] == guesses.tolist()
    assert len(set(guesses.tolist())) > 1
    assert evaluation["linear_probe"]["pictures"]["metrics"]["top1"] > 0.5


def test_what_needs_embeddings_of_texts_is_refused_in_one_line(folder, tmp_path, capsys):
    pairs = captioned(tmp_path / "pairs")
    assert "gives no embeddings of texts" in fails(capsys, "evaluate", folder, "--retrieval", pairs)
    for words in (("export", folder, tmp_path / "out"), ("classify", folder, pairs / "red.png", "--labels", "a,b")):
        assert "is a model that predicts words (loss.name" in fails(capsys, *words)


def test_a_damaged_dictionary_is_refused_in_one_line(folder, tmp_path, capsys):
    if not (folder / "ngrams.json").exists():
        pytest.skip("it has no dictionary")
    (folder / "ngrams.json").write_text("[[1, 2], [3]]")
    tree = write_tree(tmp_path / "pictures", list(COLOURS))
    assert "ngrams.json is damaged" in fails(capsys, "evaluate", folder, "--zero-shot", tree)
