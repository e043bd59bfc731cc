"""The page shows kept samples next to those left out, and does nothing else, even with hostile captions."""

import base64
import io
import re
import shlex
from html.parser import HTMLParser

import pytest
from PIL import Image

from diptych_shards.cli import main
from tests.data_prep.made_pictures import encoded
from tests.data_prep.select.shards import jpeg, photograph, write_shards

pytestmark = pytest.mark.usefixtures("forked_workers")

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "</span></figcaption></style><style>*{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c \x1b[31m \x00",
    "&lt;b&gt;",
]


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every caption twice: with a picture, and with a smaller copy of it."""
    where = tmp_path_factory.mktemp("preview")
    comment = encoded(photograph(0), comment=b"<script>secret</script>")
    first = [(comment if n == 0 else jpeg(n), text, {"width": n}) for n, text in enumerate(HOSTILE)]
    copies = [(jpeg(n, 50), text, {"width": n}) for n, text in enumerate(HOSTILE)]
    shards = write_shards(where / "shards", [first, [*copies, (b"\xff\xd8\xffno picture", "broken", {"width": 1})]])
    (where / "evaluation").mkdir()
    (where / "evaluation" / "one.jpg").write_bytes(jpeg(1, 80))
    assert main(["filter", str(shards), "--where", "width < 4 and caption <> '<script>'"]) == 0
    assert main(["dedup", str(shards), "--processes", "1", "--against", str(where / "evaluation")]) == 0
    return shards


@pytest.fixture(scope="module")
def page(folder):
    assert main(["preview", str(folder), "--processes", "1", "--examples", "20"]) == 0
    return (folder / "_index" / "select" / "preview.html").read_text(encoding="utf-8")


def test_captions_are_text_and_nothing_else(page):
    found = Page(page)
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "div", "p", "h1"),
        *("h2", "h3", "span", "i", "bdi", "small", "figure", "figcaption", "img", "svg", "rect"),
    }
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on") or name == "href"]
    assert found.text.count("<script>document.title = 'owned'</script>") >= 2
    assert "{{ 7 * 7 }}" in found.text and "&lt;b&gt;" in found.text
    assert "⟨U+202E⟩gnp.exe" in found.text and "\x1b" not in page and "\u202e" not in page
    assert (
        "meta",
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    ) in [(tag, attributes.get("content")) for tag, attributes in found.tags]


def test_pictures_are_small_copies_encoded_again(page):
    sources = [attributes["src"] for tag, attributes in Page(page).tags if tag == "img"]
    assert len(sources) > 20
    for source in sources:
        match = re.fullmatch(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", source)
        data = base64.b64decode(match[1])
        assert max(Image.open(io.BytesIO(data)).size) <= 240
        assert b"secret" not in data
    assert "cannot be shown" in page


def test_a_duplicate_is_next_to_what_it_duplicates(page):
    pairs = page.split('<div class="pair grid">')[1:]
    assert len(pairs) == 5  # three copies, and both of what is in the evaluation set
    for pair in pairs:
        left, right = re.findall(r'<small class="name"><bdi>([^<]*)</bdi>', pair)[:2]
        assert (
            right == "evaluation/one.jpg" if "evaluation picture" in pair else right[-4:] == left[-4:] and left != right
        )


def test_cards_name_files_pairs_their_distance_and_verdicts_what_undoes_them(page, folder):
    for pair in page.split('<div class="pair grid">')[1:4]:
        bits = int(re.search(r"hashes differ in (\d+) of 64 bits", pair)[1])
        assert bits <= 4  # dedup's default distance
    assert f"To undo it: rm {shlex.quote(f'{folder.name}/_index/select/dedup.parquet')}" in Page(page).text
    assert (folder / "_index" / "select" / "dedup.parquet").is_file()


def test_the_path_of_a_packed_picture_is_next_to_its_key(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"holiday_{number}.jpg").write_bytes(jpeg(number))
        (tmp_path / "in" / f"holiday_{number}.txt").write_text("a picture")
    out = tmp_path / "out"
    assert main(["pack", str(tmp_path / "in"), str(out)]) == 0
    assert main(["filter", str(out), "--where", "width > 0", "--processes", "1"]) == 0
    assert main(["preview", str(out), "--processes", "1"]) == 0
    text = (out / "_index" / "select" / "preview.html").read_text(encoding="utf-8")
    assert '<small class="origin"><bdi>holiday_1.jpg</bdi>' in text


def test_one_verdict_has_one_number_and_the_same_pixels_no_distance(tmp_path):
    shards = write_shards(tmp_path / "shards", [[(jpeg(n // 2), f"caption {n}", {}) for n in range(4)]])
    assert main(["dedup", str(shards), "--processes", "1"]) == 0
    assert main(["preview", str(shards), "--processes", "1"]) == 0
    shown = Page((shards / "_index" / "select" / "preview.html").read_text(encoding="utf-8")).text
    assert "kept by dedup2\n\n2 left out of 4 samples" in shown and "kept by all" not in shown
    assert "same_pixels2 ·" in shown and "hashes differ" not in shown


def test_each_reason_is_shown_with_its_number_and_examples_of_both_sides(page):
    shown = Page(page).text
    assert "looks_the_same3 · 17.6\u202f%" in shown and "in_evaluation2 ·" in shown
    assert "not width < 48 ·" in shown  # 4, and then its number: 8
    assert "kept by all4\n" in shown
    sides = page.split('<div class="sides">')[1:]
    assert any("left out" in side and "kept" in side for side in sides)


def test_what_a_verdict_does_not_judge_is_not_shown_as_kept_by_it(page):
    """The filter leaves out eight of seventeen; of the nine others, dedup leaves out five."""
    shown = Page(page).text
    assert "kept by filter9\n\n8 left out, 8 by it alone" in shown
    assert "kept by dedup4\n\n5 left out, 8 by others before" in shown
    assert "among what is kept by filter" in shown
    kept_by_dedup = page.rpartition('<h3 class="stays">')[2]
    assert len(re.findall(r'<small class="name">', kept_by_dedup)) == 4
    assert page.index("<h2>filter</h2>") < page.index("<h2>dedup</h2>")


def test_equal_verdicts_give_equal_pages_and_another_seed_another(folder, tmp_path):
    names = ("one", "two", "three")
    for name, seed in zip(names, "001", strict=True):
        options = ["--to", str(tmp_path / name), "--processes", "1", "--examples", "2", "--seed", seed]
        assert main(["preview", str(folder), *options]) == 0
    one, two, three = ((tmp_path / name).read_bytes() for name in names)
    assert one == two != three


def test_without_a_verdict_there_is_nothing_to_show(tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", [[(jpeg(0), "c", {})]])
    assert main(["preview", str(folder)]) == 2
    assert "has no verdict yet" in capsys.readouterr().err
