from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.evaluation.association import association, chance_of, jaccard, prompt
from diptych.evaluation.data_sets import DataSet, open_data
from diptych.evaluation.features import Features
from diptych.evaluation.pictures import Cue
from tests.evaluation.colours import COLOURS, ColourEncoder, picture

SIX = list(COLOURS)


def datacomps(cosines, is_right):
    """DataComp's formula: the Jaccard index of the right pictures and the k last ones of an ascending sort."""
    chosen = np.isin(np.arange(len(cosines)), np.argsort(cosines)[-np.count_nonzero(is_right) :])
    return np.count_nonzero(chosen & is_right) / np.count_nonzero(chosen | is_right)


def test_the_jaccard_index_is_datacomps_and_guessing_reaches_chance():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(2_000):
        is_right = draw.permutation(np.arange(12) < 3)
        cosines = draw.normal(size=12).astype(np.float32)
        found.append(jaccard(cosines, is_right))
        assert found[-1] == datacomps(cosines, is_right)
    # The standard deviation of one is 0.17, so that of the mean 0.0039, of which this is four.
    assert np.mean(found) == pytest.approx(chance_of(Cue("a", tuple(range(12)), (True,) * 3 + (False,) * 9)), abs=0.016)


def test_ties_and_nan_count_against_the_right_pictures():
    is_right = np.array([True, True, False, False])
    assert jaccard(np.zeros(4, np.float32), is_right) == 0
    assert jaccard(np.array([np.nan, 1, 0, -1], np.float32), is_right) == 1 / 3
    assert jaccard(np.array([1, 1, 0, np.nan], np.float32), is_right) == 1 / 3


def test_prompts_are_those_of_the_authors():
    assert [prompt(cue) for cue in ("America", "bald", "Owl eyes")] == ["An america", "A bald", "An owl eyes"]


def write(folder, rows):
    """Write WinoGAViL's files with a picture of each colour."""
    (folder / "winogavil_images").mkdir()
    for colour, pixels in COLOURS.items():
        (folder / "winogavil_images" / f"{colour}.jpg").write_bytes(picture(pixels))
    lines = [",candidates,cue,associations,ID"]
    for number, (cue, candidates, associations) in enumerate(rows):
        lists = [json.dumps(each).replace('"', '""') for each in (candidates, associations)]
        lines.append(f'{number},"{lists[0]}",{cue},"{lists[1]}",{number}')
    (folder / "winogavil_dataset.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_winogavils_own_files_are_measured_as_they_are(tmp_path):
    rows = [("red", SIX, ["red"]), ("Green and blue", SIX, ["green", "red"]), ("blue", [*SIX, *SIX], ["blue"])]
    pictures = open_data(str(write(tmp_path, rows)), "cues")
    assert len(pictures) == 6 and [cue.text for cue in pictures.cues] == ["red", "Green and blue", "blue"]

    result = association(Features(ColourEncoder()), DataSet(pictures))

    # Of the second cue, cyan and one of its colours are nearest; of the third, both blues are right.
    nearest = result["metrics"]
    assert nearest["jaccard_10_12"] == 1 and nearest["jaccard_5_6"] == pytest.approx((1 + nearest_of_two()) / 2)
    assert nearest["jaccard"] == pytest.approx((1 + nearest_of_two() + 1) / 3)
    assert result["intervals"]["jaccard_10_12"][0] < 1
    assert (result["pictures"], result["cues"]) == (6, 3)
    assert np.mean(result["answers"]["jaccard"]) == pytest.approx(nearest["jaccard"])
    assert result["answers"]["parts"]["jaccard_5_6"] == [0, 1]


def nearest_of_two():
    """The index of the second cue by DataComp's formula."""
    text = ColourEncoder().embed_texts(["green and blue"])[0]
    pixels = np.array(list(COLOURS.values()))
    cosines = pixels @ text / np.linalg.norm(pixels, axis=1)
    return datacomps(cosines, np.isin(SIX, ["green", "red"]))


def test_a_cue_without_one_of_its_parts_is_left_out_with_the_reason(tmp_path):
    rows = [("red", SIX, ["red"]), ("red", [*SIX, "grey"], ["red"]), ("red", SIX, ["grey"]), ("red", SIX, [])]
    write(tmp_path, [*rows, ("blue", ["blue", "green"], ["blue"])])
    with open(tmp_path / "winogavil_dataset.csv", "a") as file:
        file.write(f'9,"{"[" * 100_000}",red,"[""red""]",9\n')
    (tmp_path / "winogavil_images" / "magenta.jpg").write_bytes(b"broken")
    pictures = open_data(str(tmp_path), "cues")
    reasons = sorted(error.reason.value for error in pictures.refused.values())
    assert reasons == ["malformed_row", "malformed_row", "malformed_row", "missing_file"]
    result = association(Features(ColourEncoder()), DataSet(pictures))
    assert (result["cues"], result["metrics"]["jaccard_10_12"]) == (1, None)
    assert list(result["rejected"]) == ["winogavil_images/magenta.jpg"]


def test_a_folder_with_several_tables_and_a_table_with_other_columns_are_one_line(tmp_path):
    write(tmp_path, [("red", SIX, ["red"])])
    (tmp_path / "other.csv").write_text("cue,candidates\nred,red\n")
    with pytest.raises(ValueError, match="has 2 tables; expected one"):
        open_data(str(tmp_path), "cues")
    with pytest.raises(ValueError, match="no column associations; expected the columns cue, candidates, associations"):
        open_data(str(tmp_path / "other.csv"), "cues")
