"""The progress line of a build."""

from collections import Counter

from diptych_shards.shard_build.build_progress import BuildProgress
from diptych_shards.shard_build.shard import News


def news(fetched_bytes, **rows):
    return News(Counter({(0, outcome): count for outcome, count in rows.items()}), fetched_bytes)


def test_the_line_has_rows_speed_and_the_most_frequent_failures():
    progress = BuildProgress()
    progress.start(200, None, Counter(success=20))
    progress.add(news(1_000_000, success=60, http_404=15, timeout=4, truncated=1, too_small=0))
    assert progress.line.startswith("100 of 200 rows, 80.0 % stored, ")
    assert progress.line.endswith(" left; http_404 15.0 %, timeout 4.0 %, truncated 1.0 %")
    assert "pictures/s, " in progress.line and "MB/s, " in progress.line


def test_a_guessed_number_of_rows_is_marked_as_one():
    progress = BuildProgress()
    progress.start(None, 90, Counter())
    progress.add(news(1, success=80))
    assert progress.line.startswith("80 of about 90 rows, ") and " left" in progress.line
    progress.add(news(1, success=80))
    assert progress.line.startswith("160 rows, ") and " left" not in progress.line


def test_without_a_number_of_rows_the_line_has_no_time_left():
    progress = BuildProgress()
    progress.start(None, None, Counter())
    progress.add(news(1, success=80))
    assert progress.line.startswith("80 rows, ") and " left" not in progress.line
