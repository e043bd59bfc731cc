"""The contract of evaluators, tested for each in the table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych import cli
from diptych.encoder import Encoder
from diptych.evaluation import EVALUATORS
from diptych.evaluation.comparison import compare
from diptych.evaluation.data_sets import DataSet, data_set, open_data, prompts_for
from diptych.evaluation.evaluator import Evaluator, numbers
from diptych.evaluation.features import Features
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.prompts import Prompts
from diptych.evaluation.results_file import FORMAT, merged
from diptych.evaluation.similarity import unit_norm
from diptych.evaluation.tables import readable
from diptych.report.page import write_report
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree
from tests.test_encoder import TOKENIZER, dual_encoder, model_config


def data_for(evaluator, folder):
    """Pictures of six colours, with what the evaluator reads."""
    if evaluator.reads in ("label_sets", "matched", "cues"):
        return data_in_a_table(evaluator.reads, folder)
    if evaluator.reads == "labels":
        pictures = open_data(str(write_tree(folder / "tree", list(COLOURS), copies=4)), "labels")
        data = data_set(pictures, prompts_for([pictures], None))
        return replace(data, train=pictures) if evaluator.fits else data
    (folder / "pairs").mkdir()
    for colour, pixels in COLOURS.items():
        (folder / "pairs" / f"{colour}.png").write_bytes(picture(pixels))
        (folder / "pairs" / f"{colour}.txt").write_text(f"a {colour} wall")
    return DataSet(open_data(str(folder / "pairs"), "captions"))


def data_in_a_table(reads, folder):
    """The six colours in a table, each with several labels, or two at a time."""
    for colour, pixels in COLOURS.items():
        (folder / f"{colour}.png").write_bytes(picture(pixels))
    if reads == "label_sets":
        table = "path,label\n" + "".join(f"{each}.png,{each}|{other}\n" for each, other in pairs())
    elif reads == "cues":
        candidates = json.dumps(list(COLOURS)).replace('"', '""')
        table = "cue,candidates,associations\n" + "".join(
            f'{each} {other},"{candidates}","[""{each}"", ""{other}""]"\n' for each, other in pairs()
        )
    else:
        table = "image_0,image_1,caption_0,caption_1\n" + "".join(
            f"{each}.png,{other}.png,a {each} wall,a {other} wall\n" for each, other in pairs()
        )
    (folder / f"{reads}.csv").write_text(table)
    pictures = open_data(str(folder / f"{reads}.csv"), reads)
    return data_set(pictures, prompts_for([pictures], None) if reads == "label_sets" else Prompts((), ()))


def pairs():
    return zip(COLOURS, [*list(COLOURS)[1:], "red"], strict=True)


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_yields_numbers_with_chance_and_intervals_around_them(name, tmp_path):
    data = data_for(EVALUATORS[name], tmp_path)
    result = EVALUATORS[name].measure(Features(ColourEncoder()), data)

    assert result["pictures"] == len(data.pictures)
    assert result["rejected"] == {}
    measured = list(numbers(result))
    assert measured
    for number in measured:
        assert result["chance"].get(number.name, 0) is not None
        assert number.interval is not None
        assert number.interval[0] <= number.value <= number.interval[1]
    written = {name: {"data": json.loads(json.dumps(result, allow_nan=False))}}
    compared = list(compare(written, written))
    assert all(each.difference.value == 0 and each.difference.p_value == 1 for each in compared)
    if name != "validation":
        assert {each.metric for each in compared} & {number.name for number in measured}


@pytest.mark.parametrize("name", EVALUATORS)
def test_the_results_file_the_tables_and_the_page_show_every_number(name, tmp_path):
    evaluator = EVALUATORS[name]
    result = evaluator.measure(Features(ColourEncoder()), data_for(evaluator, tmp_path))
    evaluation = {"format": FORMAT, "model": "m", "templates": ["{}"], name: {"colours": result}}
    if evaluator.fits:
        zero_shot = EVALUATORS["zero_shot"]
        (tmp_path / "other").mkdir()
        measured = zero_shot.measure(Features(ColourEncoder()), data_for(zero_shot, tmp_path / "other"))
        evaluation["zero_shot"] = {"colours": measured}
    assert merged({"format": FORMAT, name: {"before": result}}, evaluation)[name].keys() == {"colours", "before"}
    assert evaluator.title in readable(evaluation).lower().replace("r@1", "retrieval")
    assert "colours" in write_report(tmp_path, evaluation).read_text()


def test_an_evaluator_added_to_the_table_is_an_option_and_is_shown(tmp_path, monkeypatch, capsys):
    def brightness(features, data):
        return {
            "pictures": len(data.pictures),
            "rejected": {},
            "metrics": {"mean_brightness": 0.25},
            "chance": {"mean_brightness": 0.5},
            "intervals": {"mean_brightness": [0.125, 0.375]},
        }

    monkeypatch.setitem(EVALUATORS, "brightness", Evaluator("how bright", brightness, "captions", "pictures"))
    evaluation = {"brightness": {"mine": brightness(None, data_for(EVALUATORS["brightness"], tmp_path))}}
    assert "how bright" in readable(evaluation) and "0.125 to 0.375" in readable(evaluation)
    page = write_report(tmp_path, evaluation).read_text()
    assert "how bright · mine" in page and "0.125 to 0.375" in page
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "--brightness [NAME=]DATA" in capsys.readouterr().out


class OneOf:
    """A rank of several that sees only its own share."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def together(self, make):
        return [make()]


def test_pictures_go_through_the_encoder_in_the_same_batches_for_any_number_of_ranks():
    whole = picture(COLOURS["red"])
    encoded = [whole[:40] if number % 9 == 0 else whole for number in range(300)]
    pictures = Pictures("here", tuple(map(str, range(300))), lambda place: encoded[place])

    class Recording(ColourEncoder):
        def embed_prepared(self, prepared):
            batches.append(len(prepared))
            return super().embed_prepared(prepared)

    batches = []
    kept = Features(Recording()).pictures(pictures).kept
    alone = list(batches)
    assert len(alone) == 5 and sum(alone) == len(kept) == 266
    for size in (2, 3, 5):
        batches, found = [], []
        for rank in range(size):
            found += Features(Recording(), OneOf(rank, size)).pictures(pictures).kept.tolist()
        assert batches == alone and found == kept.tolist()


def test_one_pass_gives_features_before_the_projection_and_the_usual_embeddings():
    config = model_config()
    encoder = Encoder(dual_encoder(config), TOKENIZER, config, torch.device("cpu"))
    encoded = [picture(pixels) for pixels in COLOURS.values()] * 20
    pictures = Pictures("here", tuple(map(str, range(120))), lambda place: encoded[place])
    usual = Features(encoder).pictures(pictures).embeddings

    features = Features(encoder)
    before = features.before_projection(pictures).embeddings
    encoder.embed_prepared = None  # a second pass would fail

    assert np.array_equal(features.pictures(pictures).embeddings, usual)
    projected = before @ encoder.model.image.proj.detach().numpy()
    np.testing.assert_allclose(unit_norm(projected), usual, atol=1e-6)
    assert features.of_tower == "image tower, before the projection"
