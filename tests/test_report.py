from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from diptych.evaluation.confusion import confusion_matrix, factorise, whole
from diptych.learning_curves import by_samples, training_facts
from diptych.pages.axes import logarithmic_ticks, short_number, ticks
from diptych.pages.charts import line_chart, thin
from diptych.report.headlines import strip
from diptych.report.page import write_report
from diptych.run_dir import read_metrics
from diptych.terminal import bar, columns, printable, table

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></svg><script>alert(1)</script>",
    "javascript:alert(1)",
    "a\x1b]0;owned\x07\u202edog",
    "{{ 7 * 7 }}",
)


class Page(HTMLParser):
    """Collects elements and attributes as a browser's parser finds them, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.texts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.texts.append(data)


def example(label, classes):
    guesses = [[number, 0.3] for number in range(min(3, classes))]
    return {"name": "x.png", "picture": PIXEL, "label": label, "guesses": guesses}


def zero_shot(classes, confusions=()):
    size = len(classes)
    return {
        "pictures": 2 * size,
        "rejected": {},
        "metrics": {"top1": 0.5, "top5": None, "mean_per_class_recall": 0.5},
        "chance": {"top1": 1 / size, "top5": None, "mean_per_class_recall": 1 / size},
        "classes": list(classes),
        "per_class": [[number, 2, 1] for number in range(size)],
        "confusions": [list(each) for each in confusions] or [[0, 1, size]],
        "right": [example(0, size)],
        "wrong": [example(1, size)],
    }


def retrieval(captions):
    metrics = {f"{way}_r{k}": 0.5 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    nearest = [{"caption": caption, "similarity": 0.5, "is_right": False} for caption in captions]
    found = {"name": "x.png", "picture": PIXEL, "captions": list(captions), "nearest": nearest}
    counts = {"pictures": 4, "captions": 6, "distinct_captions": 5, "rejected": {}}
    return {**counts, "metrics": metrics, "chance": metrics, "examples": [found]}


def test_hostile_captions_class_names_and_titles_are_text_and_nothing_else(tmp_path):
    evaluation = {
        "model": HOSTILE[0],
        "zero_shot": {HOSTILE[1]: zero_shot(HOSTILE)},
        "retrieval": {HOSTILE[2]: retrieval(HOSTILE)},
        "templates": [f"{HOSTILE[0]} {{}}"],
        "versions": {HOSTILE[0]: HOSTILE[1]},
    }
    run = tmp_path / HOSTILE[1]
    run.mkdir()
    (run / "config.yaml").write_text("run_dir: " + HOSTILE[2])
    html = write_report(run, evaluation, credits=HOSTILE).read_text(encoding="utf-8")

    page = Page(html)
    assert not {"script", "iframe", "object", "link", "form"} & set(page.elements)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "srcset"]
    assert all(re.fullmatch("#[a-z]+", value) for _, name, value in page.attributes if name == "href")
    assert {value.split(",")[0] for _, name, value in page.attributes if name == "src"} == {"data:image/png;base64"}
    for control in "\x1b\x07\x00\u202e\u2066":
        assert control not in html
    assert page.texts.count(HOSTILE[0]) >= 4
    assert "{{ 7 * 7 }}" in page.texts


def test_every_example_says_in_words_what_its_picture_shows(tmp_path):
    evaluation = {
        "zero_shot": {"a": zero_shot(['a "big" cat', "a dog"])},
        "retrieval": {"b": retrieval(["a <red> wall", "another"])},
    }
    page = Page(write_report(tmp_path, evaluation).read_text(encoding="utf-8"))
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert sorted(alternatives) == ['a "big" cat', 'a "big" cat', "a <red> wall", "a dog"]  # one is in the strip


def test_the_page_forbids_scripts_and_the_network(tmp_path):
    html = write_report(tmp_path, {}).read_text(encoding="utf-8")
    policy = [value for _, name, value in Page(html).attributes if name == "content"][0]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_an_address_in_place_of_a_picture_is_refused(tmp_path):
    result = zero_shot(["cat", "dog"])
    result["wrong"][0]["picture"] = "http://example.com/track.png"
    with pytest.raises(ValueError, match="as a data URI is expected"):
        write_report(tmp_path, {"zero_shot": {"mine": result}})


def test_what_is_missing_is_left_out(tmp_path):
    html = write_report(tmp_path, {}).read_text(encoding="utf-8")
    for heading in ("How it learned", "confuses", "Examples", "Nearest captions", "Credits", "Configuration"):
        assert heading not in html
    result = copy.deepcopy(zero_shot(["cat", "dog"]))
    del result["right"], result["wrong"]
    html = write_report(tmp_path, {"zero_shot": {"mine": result}}).read_text(encoding="utf-8")
    assert "Examples" not in html
    assert "What it confuses" in html


def test_curves_pictures_config_and_credits_are_in_the_page(tmp_path):
    records = [{"event": "start", "samples_seen": 0}] + [
        {"samples_seen": 32 * step, "step": step, "time": 100.0 + step, "loss": 3 / step, "i2t_accuracy": 0.5}
        for step in range(1, 50)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"loss": 1')
    (tmp_path / "config.yaml").write_text("training:\n  seed: 3\n")
    (tmp_path / "samples.png").write_bytes(b"\x89PNG")
    evaluation = {
        "zero_shot": {"seen": zero_shot(["cat", "dog"])},
        "retrieval": {"pairs": retrieval(["a cat"])},
    }

    html = write_report(tmp_path, evaluation, credits=["By the artists."]).read_text(encoding="utf-8")

    for expected in (
        "Loss",
        "Accuracy in the batch",
        "1,568",
        "48 s",
        "seed: 3",
        "By the artists.",
        "iVBORw",
        "a cat",
    ):
        assert expected in html
    assert "Learning rate" not in html
    assert html.count("<polyline") == 3  # The loss has a logarithmic axis too.


def test_metrics_measured_again_after_a_resume_replace_the_first(tmp_path):
    lines = [{"samples_seen": 10, "loss": 5}, {"samples_seen": 20, "loss": 4}, {"event": "resume"}]
    lines += [{"samples_seen": 20, "loss": 3}, {"samples_seen": 30, "loss": 2}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [record["loss"] for record in by_samples(read_metrics(tmp_path / "metrics.jsonl"))] == [5, 3, 2]


def test_facts_of_the_training_are_those_that_the_record_has():
    first = {"samples_seen": 10, "samples_per_second": 90.0, "data_wait_fraction": 0.1, "data_wait_slowest_rank": 3}
    last = {"samples_seen": 20, "samples_per_second": 90.0, "data_wait_fraction": 0.3, "data_wait_slowest_rank": 1}
    phases = {"forward_seconds": 1.0, "backward_seconds": 2.5, "update_seconds": 0.5}
    facts = dict(training_facts([first, {**first, **phases, "logit_scale_at_limit": 0.0}, last]))
    assert facts == {
        "samples seen": "20",
        "samples per second, median": "90",
        "waiting for data": "16.7\u202f%",
        "rank that waited longest": "3",
        "of a step": "forward 25.0\u202f%, backward 62.5\u202f%, update 12.5\u202f%",
    }
    of_a_gpu = {"mfu": 0.4, "teraflops_per_rank": 400.0, "logit_scale_at_limit": 0.5, "skipped_steps": 2}
    read = {"bytes_read_per_second": 2.5e6, "rejected_samples": 5, "rejected_no_caption": 2, "rejected_truncated": 3}
    first |= {"share_of_web": 1.0, "share_of_books": 0.0}
    read |= {"share_of_web": 0.5, "share_of_books": 0.5, "epochs_of_web": 12.04, "epochs_of_books": 0.5}
    facts = dict(training_facts([{**first, "cache_hit_fraction": 0.5}, {**last, **read, "cache_hit_fraction": 1.0}]))
    assert facts["read from shards, median"] == "2.5 MB/s"
    assert facts["shards found in the cache"] == "75.0\u202f%"
    assert facts["mix of sources"] == "web 75.0\u202f%, books 25.0\u202f%"
    assert facts["epochs of each source"] == "web 12.0, books 0.5"
    assert facts["samples rejected"] == "5 (truncated 3, no_caption 2)"
    saves = [{"event": "save", "stall_seconds": s, "seconds": 10 * s, "bytes": 2_000_000} for s in (0.1, 0.3, 0.2)]
    facts = dict(training_facts([first, {**last, **of_a_gpu}], [{"event": "save", "seconds": 9.0}, *saves]))
    assert facts["a checkpoint"] == "2 MB, complete after 2 s (median)"
    assert facts["training stopped for a save, median"] == "0.2 s"
    assert facts["model FLOPs utilisation"] == "40.0\u202f%" and not any("teraFLOPs" in name for name in facts)
    assert facts["steps with the logit scale at its limit"] == "50.0\u202f%"
    assert facts["steps without finite numbers, skipped"] == "2"
    assert dict(training_facts([{**last, "teraflops_per_rank": 0.5}]))["teraFLOPs a second and rank"] == "0.5"


def test_class_names_that_are_combinations_are_split():
    nouns, colours = ["crab", "apple", "ice cream"], ["red", "orange"]
    names = [f"{'an' if n[0] in 'aeiou' else 'a'} {n} on {'an' if c[0] == 'o' else 'a'} {c} background"
             for n in nouns for c in colours]  # fmt: skip
    first, second = factorise(names)
    assert first.names == tuple(nouns) and first.of_class.tolist() == [0, 0, 1, 1, 2, 2]
    assert second.names == tuple(colours) and second.of_class.tolist() == [0, 1] * 3
    assert factorise(["cat", "dog", "bird on a wire"]) is None
    assert factorise(["cup of tea", "piece of cake", "kind of blue", "out of time"]) is None


def test_confusions_are_counted_over_a_part_or_over_the_worst_classes():
    names = [f"{noun} on {colour}" for noun in ("crab", "bee") for colour in ("red", "grey")]
    result = zero_shot(names, [(0, 1, 3), (1, 2, 2)])
    first, second = factorise(names)
    assert confusion_matrix([result], first).counts.tolist() == [[2 + 3, 2], [0, 2]]
    assert confusion_matrix([result], second).counts.tolist() == [[2, 3], [2, 2]]
    worst = confusion_matrix([result], whole(names), most_shown=2)
    assert worst.rows == ("crab on red", "crab on grey")
    assert worst.columns[-1] == "other"
    assert worst.counts.tolist() == [[1, 3, 0], [0, 1, 2]]


def test_a_grid_of_combinations_marks_those_of_the_later_data_sets(tmp_path):
    names = [f"{noun} on {colour}" for noun in ("crab", "bee", "owl") for colour in ("red", "grey")]
    seen, unseen = zero_shot(names), zero_shot(names)
    seen["per_class"], unseen["per_class"] = seen["per_class"][:4], seen["per_class"][4:]
    html = write_report(tmp_path, {"zero_shot": {"seen": seen, "unseen": unseen}}).read_text(encoding="utf-8")
    assert "Every combination" in html
    assert html.count('class="marked"') == 2


def test_charts_leave_out_what_is_not_finite_and_keep_the_last_point():
    points = [(float(x), float(x % 7)) for x in range(5000)]
    assert len(thin(points)) <= 361 and thin(points)[-1] == points[-1]
    chart = line_chart("Loss", {"loss": [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)]}, x_label="")
    assert len(chart.lines[0].points.split()) == 2
    assert line_chart("Loss", {"loss": [(1, 2.0)]}, x_label="") is None
    assert line_chart("Flat", {"flat": [(1, 0.0), (2, 0.0)]}, x_label="") is not None


def test_ticks_are_round_and_inside():
    assert ticks(0, 102_400, 4) == pytest.approx([0, 20_000, 40_000, 60_000, 80_000, 100_000])
    assert ticks(0.13, 0.97, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [short_number(value) for value in (12.8e9, 51_200, 999.7, 0.0015, 1e-5, 0)] == [
        "12.8B", "51.2k", "1k", "0.0015", "1e-05", "0"]  # fmt: skip


def test_ticks_that_are_near_each_other_have_different_labels():
    for low, high in ((14.13, 14.25), (1_000_000, 1_000_400), (1e-5, 1.0001e-5), (0, 1)):
        chart = line_chart("Logit scale", {"scale": [(0, low), (1, high)]}, x_label="")
        for labels in ([label for _, label in chart.y_ticks], [label for _, label in chart.x_ticks]):
            assert len(labels) == len(set(labels)) > 1


def test_a_logarithmic_axis_has_round_ticks_and_leaves_out_what_is_not_above_zero():
    assert logarithmic_ticks(0.3, 5) == pytest.approx([0.5, 1, 2, 5])
    assert logarithmic_ticks(1e-3, 10) == pytest.approx([1e-3, 1e-2, 0.1, 1, 10])
    assert logarithmic_ticks(0.36, 0.44) == pytest.approx([0.36, 0.38, 0.4, 0.42, 0.44])
    chart = line_chart(
        "Loss", {"loss": [(0, 10.0), (1, 0.0), (2, 1.0), (3, -1.0), (4, 0.1)]}, x_label="", logarithmic_y=True
    )
    heights = [float(point.split(",")[1]) for point in chart.lines[0].points.split()]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2) and chart.about == "0.1"
    assert line_chart("Flat", {"flat": [(1, 2.0), (2, 2.0)]}, x_label="", logarithmic_y=True) is not None
    assert line_chart("Loss", {"loss": [(1, 0.0), (2, 0.0)]}, x_label="", logarithmic_y=True) is None


def test_the_loss_can_be_looked_at_on_a_logarithmic_axis(tmp_path):
    records = [{"samples_seen": 32 * step, "loss": 3 / step, "logit_scale": 14.0 + step} for step in range(1, 50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    figures = write_report(tmp_path, {}).read_text(encoding="utf-8").split("<figure")[1:]
    loss, scale = (next(figure for figure in figures if title in figure) for title in ("Loss", "Logit scale"))
    assert loss.count("<svg") == 2 and '<input type="checkbox"' in loss and "on a logarithmic axis" in loss
    assert scale.count("<svg") == 1 and "<input" not in scale


def test_restarts_and_checkpoints_are_marked_on_the_curves(tmp_path):
    records = [{"samples_seen": 32 * step, "loss": 3 / step, "epoch": step / 20} for step in range(1, 50)]
    records += [{"event": "start", "samples_seen": seen} for seen in (0, 320, 640)]
    records += [{"event": "save", "samples_seen": seen} for seen in (320, 640, 960, 99_999)]
    records += [{"event": "end", "samples_seen": 1568, "seconds": 75.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    html = write_report(tmp_path, {}).read_text(encoding="utf-8")
    figure = html[html.index('<svg class="linear"') : html.index("</svg>", html.index('<svg class="linear"'))]
    upright = re.findall(r'class="axis" x1="([\d.]+)" x2="\1"', figure)
    assert len(upright) == 2 and "an epoch is 640, and ends at each upright line" in html
    assert figure.count('class="dashed restart"') == 2 and figure.count('class="checkpoint"') == 3
    assert "1 min 15 s" in html and "2 times" in html


def test_the_page_begins_with_pictures_their_names_and_a_sentence(tmp_path):
    result = {**zero_shot(["cat", "dog"]), "sample": [example(0, 2), example(1, 2)]}
    evaluation = {"zero_shot": {"mine": result}}
    assert [(each["said"], each["is_right"]) for each in strip(evaluation)] == [("cat", True), ("cat", False)]
    html = write_report(tmp_path, evaluation).read_text(encoding="utf-8")
    head = html[: html.index("</header>")]
    assert "Shown 4 pictures of “mine”, the model gave 50.0\u202f% of them their right name out of 2" in head
    assert head.count("<img") == 2 and "is <bdi>dog</bdi>" in head


def test_one_of_anything_is_written_in_the_singular(tmp_path):
    result = zero_shot([f"{noun} on {colour}" for noun in ("crab", "bee") for colour in ("red", "grey")], [[0, 1, 1]])
    evaluation = {
        "zero_shot": {"x": {**result, "pictures": 1}},
        "retrieval": {"y": {**retrieval(["a cat"]), "captions": 1}},
    }
    words = " ".join(Page(write_report(tmp_path, evaluation).read_text(encoding="utf-8")).texts)
    assert "Shown 1 picture of" in words and "Of 1 error, only" in words and "4 classes" in words
    assert not re.search(r"(?<![\d,.])1 (pictures|captions|classes|errors)", words)


def test_no_number_of_training_data_is_shown_without_its_mark(tmp_path):
    seen = {**zero_shot(["cat", "dog"]), "seen_in_training": True}
    pairs = {**retrieval(["a cat"]), "seen_in_training": True}
    html = write_report(tmp_path, {"zero_shot": {"mine": seen}, "retrieval": {"b": pairs}}).read_text(encoding="utf-8")
    assert html.count(">seen in training<") == 3 + 2  # three cards, two sections
    assert "which were in the training data, the model gave" in html
    both = {"zero_shot": {"fresh": zero_shot(["cat", "dog"]), "mine": seen}}
    assert "pictures of “fresh”" in write_report(tmp_path, both).read_text(encoding="utf-8")


def test_every_link_of_the_contents_leads_to_a_section(tmp_path):
    evaluation = {"zero_shot": {"a": zero_shot(["cat", "dog"])}, "retrieval": {"b": retrieval(["x", "y"])}}
    (tmp_path / "config.yaml").write_text("a: 1")
    page = Page(write_report(tmp_path, evaluation).read_text(encoding="utf-8"))
    links = [value.removeprefix("#") for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    ids = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert links == ids == ["confused", "examples", "nearest", "again"]


def test_an_own_caption_that_is_not_near_comes_with_its_rank_and_cosine(tmp_path):
    found = retrieval(["a", "b"])
    found["examples"][0]["own"] = {"caption": "mine", "similarity": 0.71, "rank": 37}
    text = "".join(Page(write_report(tmp_path, {"retrieval": {"b": found}}).read_text(encoding="utf-8")).texts)
    assert "mine0.71its own, rank 37" in text


def test_the_first_batch_is_shown_as_figures_where_the_run_kept_them(tmp_path):
    (tmp_path / "samples.png").write_bytes(b"\x89PNG")
    (tmp_path / "samples.json").write_text(json.dumps([{"picture": PIXEL, "caption": "a <b>"}]))
    page = Page(write_report(tmp_path, {}).read_text(encoding="utf-8"))
    assert ("img", "alt", "a <b>") in page.attributes and page.texts.count("a <b>") == 1
    assert ("img", "class", "samples") not in page.attributes


def test_terminal_lines_hold_no_control_characters_and_count_wide_ones_twice():
    assert printable("a\x1b[31mb\nc\td\x9b\u202ee") == "a[31mb c d<U+202E>e"
    assert columns("日本a") == 5
    assert printable("日本語テキスト", 6) == "日本…"
    assert [len(bar(share, 8)) for share in (0, 0.01, 0.5, 1, 2, float("nan"))] == [8] * 6
    lines = table([["日本" * 60, "x"], ["short", "yy"]], align="<>").splitlines()
    assert [columns(line) for line in lines] == [80, 80] or columns(lines[0]) == 79


GRID = [f"{noun} on {colour}" for noun in ("crab", "bee") for colour in ("red", "grey")]


@pytest.mark.parametrize("names", [["cat", "dog"], GRID])
def test_a_model_without_errors_gets_a_page(tmp_path, names):
    result = {**zero_shot(names), "confusions": [], "wrong": []}
    html = write_report(tmp_path, {"zero_shot": {"all": result}}).read_text(encoding="utf-8")
    assert "What it confuses" in html
    assert "Most frequent errors" not in html
