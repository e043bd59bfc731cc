from __future__ import annotations

import numpy as np
import pytest

from diptych.evaluation.prompts import build_classifier, classes_called, load_prompts, make_prompts


class LetterEncoder:
    """Embeds a text as its counts of letters, without normalising the length."""

    logit_scale = 1.0

    def __init__(self):
        self.calls = []

    def embed_texts(self, texts):
        self.calls.append(list(texts))
        return np.array([[text.count(letter) for letter in "abcdefghij"] for text in texts], dtype=np.float32)


def test_a_class_is_the_renormalised_mean_of_the_unit_embeddings_of_all_its_prompts():
    prompts = make_prompts(["cab", {"name": "x1", "names": ["bag", "a bead"]}], ["a {}", "{} jihg", "faded {}"])
    encoder = LetterEncoder()

    classifier = build_classifier(encoder, prompts.classes, prompts.templates)

    for row, names in zip(classifier, (["cab"], ["bag", "a bead"]), strict=True):
        texts = [template.replace("{}", name) for name in names for template in prompts.templates]
        units = [each / np.linalg.norm(each) for each in encoder.embed_texts(texts).astype(np.float64)]
        mean = np.mean(units, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-7)  # fp32 rounding
    assert classifier.dtype == np.float32


def test_all_prompts_are_embedded_in_one_batch_if_they_fit():
    prompts = make_prompts([f"class {number}" for number in range(100)], ["a {}", "the {}"])
    encoder = LetterEncoder()
    build_classifier(encoder, prompts.classes, prompts.templates)
    assert [len(call) for call in encoder.calls] == [200]


def test_classes_with_synonyms_and_templates_come_from_yaml(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text('classes: [tench, {name: n01, names: [goldfish, carp]}]\ntemplates: ["a {}."]\n')
    prompts = load_prompts(path)
    assert prompts.class_names == ("tench", "n01")
    assert prompts.classes[1].names == ("goldfish", "carp")
    assert prompts.templates == ("a {}.",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes: []", "classes is empty"),
        ("templates: ['{}']", "classes is empty"),
        ("classes: {0: cat, 1: dog}", 'classes is a mapping; expected a list of names such as ["cat", "dog"]'),
        ("classes: cat", "classes is 'cat'; expected a list of names"),
        ("classes: [cat]\ntemplates: 'a {}'", "templates is 'a {}'; expected a list of texts"),
        ("classes: [cat, dog, cat]", "'cat' is listed 2 times"),
        ("classes: [cat]\ntemplates: []", "templates is empty"),
        ("classes: [cat]\ntemplates: [a photo]", "must contain {} exactly once"),
        ("classes: [cat]\ntemplates: ['{} and {}']", "must contain {} exactly once"),
        ("classes: [yes]", "in quotes"),
        ("classes: [{name: cat, names: []}]", "is not a name"),
        ("classes: [{name: cat, synonyms: [kitten]}]", "is not a name"),
        ("clases: [cat]", "expected the two keys classes and templates"),
        ("[cat, dog]", "expected the two keys classes and templates"),
        ("classes: {0: cat, 1: dog}", "classes is a mapping; expected a list"),
        ("classes: cat, dog", "classes is 'cat, dog'; expected a list"),
        ("classes:", "classes is empty"),
        ("classes: [cat]\ntemplates: a photo of a {}.", "templates is 'a photo of a {}.'; expected a list"),
        ("classes: [cat, cat]", "(1 such class)"),
        ("classes: [cat", "cannot be read as YAML"),
        ("classes: [cat]\ntemplates: ['{}']\nclasses: [dog]", "the key 'classes' appears twice, first in line 1"),
    ],
)
def test_a_mistake_in_the_yaml_is_named_with_its_file(tmp_path, text, expected):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_prompts(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml cannot be read: No such file or directory; expected a YAML file"):
        load_prompts(tmp_path / "none.yaml")


def test_labels_that_are_all_numbered_lose_their_numbers_in_prompts_alone():
    cub = ["001.Black_footed_Albatross", "002.Crested_Auklet"]
    assert [(each.name, each.names) for each in classes_called(cub)] == [
        (cub[0], ("Black footed Albatross",)),
        (cub[1], ("Crested Auklet",)),
    ]
    for labels in ([*cub, "heron"], ["10.5 mm", "12.5 mm"], ["1.e4", "2.d4"], ["10 euros", "20 euros"], ["a_b"]):
        assert [each.names for each in classes_called(labels)] == [(label,) for label in labels]
