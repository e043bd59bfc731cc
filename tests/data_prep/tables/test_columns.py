import re

import pytest

from diptych_shards.tables.columns import ColumnOptions, Columns, TableError, choose_columns, choose_extra

PUBLISHED = {
    "LAION-400M": (["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"], "URL", "TEXT"),
    "LAION-2B": (["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "punsafe", "pwatermark"], "URL", "TEXT"),
    "LAION-COCO": (["URL", "TEXT", "top_caption", "all_captions", "all_similarities"], "URL", "TEXT"),
    "img2dataset's output": (["caption", "url", "key", "status", "error_message", "width"], "url", "caption"),
    "COYO-700M": (["id", "url", "text", "width", "height", "image_phash", "text_length", "word_count"], "url", "text"),
    "DataComp": (["uid", "url", "text", "original_width", "original_height"], "url", "text"),
    "SBU": (["image_urls", "captions"], "image_urls", "captions"),
    "cc2dataset": (["uid", "url", "alt", "cc_filename", "page_url"], "url", "alt"),
}


@pytest.mark.parametrize("table", PUBLISHED)
def test_the_columns_of_published_tables_are_found(table):
    names, url, caption = PUBLISHED[table]
    assert choose_columns(names, ColumnOptions(), "table") == Columns(url, caption)


def test_a_sha256_and_face_boxes_are_found():
    found = choose_columns(["uid", "url", "text", "face_bboxes", "sha256"], ColumnOptions(), "table")
    assert (found.hash, found.hash_kind, found.boxes) == ("sha256", "sha256", "face_bboxes")


def test_two_fitting_columns_are_named_with_the_option_that_decides():
    with pytest.raises(TableError, match=r"2 columns that could be the caption: caption, TEXT; .*--caption-column"):
        choose_columns(["url", "caption", "TEXT"], ColumnOptions(), "t.csv")
    assert choose_columns(["url", "caption", "TEXT"], ColumnOptions(caption="text"), "t.csv").caption == "TEXT"


def test_a_title_is_the_caption_where_there_is_no_other():
    assert choose_columns(["url", "Title"], ColumnOptions(), "t.csv").caption == "Title"
    assert choose_columns(["url", "title", "text"], ColumnOptions(), "t.csv").caption == "text"


def test_a_table_without_a_known_caption_but_with_text_is_refused_with_the_option():
    with pytest.raises(TableError, match="--caption-column none"):
        choose_columns(["url", "words"], ColumnOptions(), "t.csv", texts=["url", "words"])
    assert choose_columns(["url", "words"], ColumnOptions(caption="none"), "t.csv", ["url", "words"]).caption is None
    assert choose_columns(["url", "size"], ColumnOptions(), "t.csv", texts=["url"]).caption is None


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a", "b"], ColumnOptions(), "t has no column that could be the url; name it with --url-column. Its columns"),
        (["url"], ColumnOptions(caption="text"), "t has no column 'text'. Its columns: url"),
        (["url", "b"], ColumnOptions(caption="url"), "cannot be both the url and the caption"),
        (["a\nb"], ColumnOptions(), r"a\nb"),
    ],
)
def test_a_mistake_is_one_line(names, options, message):
    with pytest.raises(TableError, match=re.escape(message)) as caught:
        choose_columns(names, options, "t")
    assert "\n" not in str(caught.value)


def test_all_columns_are_carried_along_or_those_asked_for():
    names = ["id", "url", "text", "a", "b", "__index_level_0__"]
    columns = Columns("url", "text")
    assert choose_extra(names, columns, ColumnOptions(), "t") == names[:-1]
    assert choose_extra(names, columns, ColumnOptions(extra=("B",)), "t") == ["url", "text", "b"]
    with pytest.raises(TableError, match="no column 'c'"):
        choose_extra(names, columns, ColumnOptions(extra=("c",)), "t")
