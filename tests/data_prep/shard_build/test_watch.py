"""What a person sees of a build."""

from collections import Counter

from diptych_shards.shard_build.shard import News
from diptych_shards.shard_build.watch import Watch


def news(fetched_bytes, **rows):
    return News(Counter({(0, outcome): count for outcome, count in rows.items()}), fetched_bytes)


def test_the_line_tells_rows_pace_and_the_top_failures():
    watch = Watch()
    watch.begin(200, None, Counter(success=20))
    watch.tell(news(1_000_000, success=60, http_404=15, timeout=4, truncated=1, too_small=0))
    assert watch.line.startswith("100 of 200 rows, 80.0 % stored, ")
    assert watch.line.endswith(" left; http_404 15.0 %, timeout 4.0 %, truncated 1.0 %")
    assert "pictures/s, " in watch.line and "MB/s, " in watch.line


def test_where_the_number_of_rows_is_guessed_the_line_says_so():
    watch = Watch()
    watch.begin(None, 90, Counter())
    watch.tell(news(1, success=80))
    assert watch.line.startswith("80 of about 90 rows, ") and " left" in watch.line
    watch.tell(news(1, success=80))
    assert watch.line.startswith("160 rows, ") and " left" not in watch.line


def test_where_nothing_is_known_of_the_number_of_rows_there_is_no_time_left():
    watch = Watch()
    watch.begin(None, None, Counter())
    watch.tell(news(1, success=80))
    assert watch.line.startswith("80 rows, ") and " left" not in watch.line
