import gzip
import io
import random
import zlib
from collections import Counter

import brotli
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.extract import gzip_members, records
from diptych_shards.extract.records import BROKEN, read_records
from tests.data_prep.extract.crawls import answer, extracted, img, page_record, record, warc_gz

RECORDS = [page_record(f"<p>{number}" + img(f"n{number}")) for number in range(6)]
CAPTIONS = [f"a picture of n{number}" for number in range(6)]


def captions(content: bytes) -> list[str]:
    return [caption for _, caption in extracted(content)[0]]


def broken(content: bytes) -> int:
    return extracted(content)[1].records[BROKEN]


@pytest.mark.parametrize(
    "content",
    [
        b"".join(RECORDS),
        warc_gz(*RECORDS),
        gzip.compress(b"".join(RECORDS)),
        warc_gz(b"".join(RECORDS)[:700], b"".join(RECORDS)[700:]),
        b"".join(RECORDS).replace(b"WARC/1.0\r\n", b"WARC/1.1 \n"),
        b"".join(RECORDS).replace(b"Content-Length", b"content-length").replace(b"WARC-T", b"warc-t"),
        warc_gz(*RECORDS) + b"\0" * 1000,
        b"\r\n".join(RECORDS),
    ],
    ids=["plain", "a member a record", "one member", "members cut anywhere", "sloppy", "lower case", "padded", "blank"],
)
def test_all_records_are_read_from_any_kind_of_file(content):
    assert captions(content) == CAPTIONS
    assert broken(content) == 0


def test_offsets_are_those_of_the_record_or_its_member():
    plain, gz = b"".join(RECORDS), warc_gz(*RECORDS)
    for content, sizes in ((plain, map(len, RECORDS)), (gz, (len(warc_gz(one)) for one in RECORDS))):
        expected, offset = [], 0
        for size in sizes:
            expected.append(offset)
            offset += size
        found = read_records(io.BytesIO(content), Counter(), max_block_bytes=10**6)
        assert [record.offset for record in found] == expected


def damaged(gz: bytes, which: int, how: str) -> bytes:
    members = [warc_gz(one) for one in RECORDS]
    assert b"".join(members) == gz
    member = members[which]
    members[which] = {
        "bits": member[:60] + bytes(byte ^ 0xA5 for byte in member[60:80]) + member[80:],
        "cut": member[:70],
        "crc": member[:-8] + b"\0\0\0\0" + member[-4:],
        "noise": b"\x00\x01\x02noise" * 10,
        "no record": gzip.compress(b"something else"),
        "header": warc_gz(RECORDS[which].replace(b"Content-Length: ", b"Content-Length: x")),
        "too long": warc_gz(RECORDS[which].replace(b"Content-Length: ", b"Content-Length: 9")),
    }[how]
    return b"".join(members)


@pytest.mark.parametrize("how", ["bits", "cut", "crc", "noise", "no record", "header", "too long"])
@pytest.mark.parametrize("which", [1, 3, 5])
def test_a_broken_member_costs_no_other_and_is_counted(which, how):
    content = damaged(warc_gz(*RECORDS), which, how)
    assert captions(content) == CAPTIONS[:which] + CAPTIONS[which + 1 :]
    assert broken(content) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda one: one.replace(b"Content-Length: ", b"Content-Length: -"),
        lambda one: one.replace(b"WARC/1.0", b"WORK/1.0"),
        lambda one: one[: len(one) // 2],
        lambda one: one.replace(b"Content-Length: ", b"Content-Length: 9"),
        lambda one: b"garbage " * 50,
        lambda one: one.replace(b"\r\n\r\n", b"\r\n"),
    ],
)
def test_a_broken_record_of_a_plain_file_costs_no_other_and_is_counted(wrong):
    content = b"".join([*RECORDS[:2], wrong(RECORDS[2]), *RECORDS[3:]])
    assert [caption for caption in captions(content) if caption != CAPTIONS[2]] == CAPTIONS[:2] + CAPTIONS[3:]
    assert broken(content) == 1


def test_a_read_that_ends_anywhere_within_a_plain_file_loses_no_record(monkeypatch):
    content = b"".join(RECORDS)
    for size in (*range(1, 17), *range(len(RECORDS[0]) - 20, len(RECORDS[0]) + 20)):
        monkeypatch.setattr(records, "READ_BYTES", size)
        assert captions(content) == CAPTIONS and broken(content) == 0, size


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_whole_page_is_read_although_its_file_ends_within_its_gzip_member(missing):
    for content in (warc_gz(*RECORDS), gzip.compress(b"".join(RECORDS))):
        assert captions(content[:-missing]) == CAPTIONS and extracted(content[:-missing])[1].files_cut == 1


def test_a_file_of_one_member_keeps_all_pages_before_its_early_end():
    content = gzip.compress(b"".join(RECORDS), 0)  # stored: bytes of the file are bytes of the records
    assert captions(content[: -8 - len(RECORDS[-1]) // 2]) == CAPTIONS[:-1]


@pytest.mark.parametrize("pack", [b"".join, lambda records: warc_gz(*records)], ids=["plain", "members"])
def test_only_a_file_that_ends_within_a_record_ends_early(pack):
    whole = pack(RECORDS)
    last = len(pack(RECORDS[-1:]))
    for missing in (9, last // 2, last - 1):
        assert extracted(whole[:-missing])[1].files_cut == 1, missing
    for content in (whole, whole[:-last], whole + b"\0" * 512, b"garbage", b""):
        assert extracted(content)[1].files_cut == 0
    assert extracted(damaged(warc_gz(*RECORDS), 3, "noise"))[1].files_cut == 0


def test_a_file_that_ends_within_a_record_keeps_the_others():
    for content in (b"".join(RECORDS)[:-40], warc_gz(*RECORDS)[:-40]):
        assert captions(content) == CAPTIONS[:-1]
        assert broken(content) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no crawl at all", b"\x1f\x8b\x08" + b"\xff" * 300, b"\0" * 5000, b"\r\n" * 9]
)
def test_a_file_without_records_gives_none(content):
    assert captions(content) == []


def test_members_with_names_times_or_the_start_of_another_within_give_their_records():
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)  # nothing is packed, so the file contains the text
    within = stored.compress(page_record(img("n0") + "\x1f\x8b\x08 ").replace(b"\xc2\x8b", b"\x8b")) + stored.flush()
    assert gzip_members.MAGIC in within[3:]
    named = io.BytesIO()
    with gzip.GzipFile("a name", "wb", fileobj=named, mtime=1) as file:
        file.write(RECORDS[1])
    content = within + named.getvalue() + gzip.compress(RECORDS[2])
    assert captions(content + b"between" + gzip.compress(RECORDS[3])) == CAPTIONS[:4]
    assert (broken(content), broken(content + b"between" + gzip.compress(RECORDS[3]))) == (0, 1)


def test_a_record_longer_than_asked_for_is_cut_and_the_next_one_found():
    long = page_record(img("first") + "<p>" + "x" * 9_000_000)
    for content in (long + RECORDS[0], warc_gz(long, RECORDS[0]), gzip.compress(long + RECORDS[0])):
        found, report = extracted(content, max_page_bytes=1 << 20)
        assert [caption for _, caption in found] == ["a picture of first", CAPTIONS[0]]
        assert report.records == {"page cut": 1, "read": 2}


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def zstd(body: bytes) -> bytes:
    return pyarrow.compress(body, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("headers", "pack"),
    [
        ("Transfer-Encoding: chunked", chunked),
        ("Transfer-Encoding: chunked", bytes),
        ("Content-Encoding: gzip", gzip.compress),
        ("Content-Encoding: gzip", bytes),
        ("Content-Encoding: gzip", lambda body: b"\xef\xbb\xbf" + body),
        ("Content-Encoding: br", lambda body: b"2 words before: " + body),
        ("Content-Encoding: deflate", zlib.compress),
        ("Content-Encoding: deflate", raw_deflate),
        ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", lambda body: chunked(gzip.compress(body))),
        ("Content-Encoding: gzip", lambda body: gzip.compress(body)[:-9]),
        ("Content-Encoding: br", brotli.compress),
        ("Content-Encoding: zstd", zstd),
        ("Content-Encoding: zstd", bytes),
        ("X-Crawler-Content-Encoding: gzip", bytes),
        ("Content-Encoding: identity", bytes),
    ],
)
def test_bodies_are_unpacked_and_headers_that_lie_do_no_harm(headers, pack):
    body = (img("n0") + "<p>" * 99).encode()
    assert captions(page_record(pack(body), headers=f"Content-Type: text/html\r\n{headers}")) == CAPTIONS[:1]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd)])
def test_an_inflated_body_is_cut_where_a_page_is(encoding, pack):
    bomb = pack(img("n0").encode() + b" " * 50_000_000)
    found, report = extracted(page_record(bomb, headers=f"Content-Type: text/html\r\nContent-Encoding: {encoding}"))
    assert [caption for _, caption in found] == CAPTIONS[:1]
    assert report.records == {"page cut": 1, "read": 1}


def test_the_beginning_of_a_body_that_was_cut_is_read():
    body = zstd(img("n0").encode() + random.Random(0).randbytes(1 << 19))
    page = page_record(body[: len(body) // 2], headers="Content-Type: text/html\r\nContent-Encoding: zstd")
    assert captions(page) == CAPTIONS[:1]


def test_a_status_line_that_names_the_protocol_twice_is_read():
    """A status line as it is written by programs that give warcio the whole line as status."""
    assert captions(page_record(img("n0"), status="HTTP/1.1 200 OK")) == CAPTIONS[:1]
    assert captions(page_record(img("n0"), status="HTTP/1.1 404 Not Found")) == []


@pytest.mark.parametrize(
    ("content", "counted"),
    [
        (page_record(img("n"), status="404 Not Found"), "answered with an error or a redirect"),
        (page_record(img("n"), headers="Content-Type: application/json"), "not HTML"),
        (page_record("\x1f\x8bxx", headers="Content-Type: text/html\r\nContent-Encoding: gzip"),
         "content encoding unknown or wrong"),
        (page_record("(\1\2", headers="Content-Type: text/html\r\nContent-Encoding: zstd"),
         "content encoding unknown or wrong"),
        (page_record("\1\2", headers="Content-Type: text/html\r\nContent-Encoding: lzma"),
         "content encoding unknown or wrong"),
        (record(b"GET / HTTP/1.1\r\n\r\n", "request"), "of another type"),
        (record(answer(img("n")), "revisit"), "of another type"),
        (record(b"no http"), "no HTTP"),
    ],
)  # fmt: skip
def test_records_of_no_page_are_counted(content, counted):
    found, report = extracted(content)
    assert found == [] and report.records == {counted: 1}


def test_a_target_in_angle_brackets_and_a_resource_record_work():
    wget = record(answer("<img src=x.jpg alt=words>"), url="<http://b.example/dir/>")
    resource = record(b"<img src=x.jpg alt=words>", "resource", "http://c.example/", "text/html; charset=utf-8")
    assert extracted(wget + resource)[0] == [
        ("http://b.example/dir/x.jpg", "words"),
        ("http://c.example/x.jpg", "words"),
    ]


def test_the_charset_of_the_header_is_used_before_parsing():
    text = "日本の庭園"
    for codec in ("euc_jp", "gb18030", "shift_jis"):
        html = f"<img src=x.jpg alt='{text}'>".encode(codec)
        assert captions(page_record(html, headers=f"Content-Type: text/html; charset={codec}")) == [text]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_after_damage_anywhere_only_written_records_are_read(data):
    content = data.draw(st.sampled_from([b"".join(RECORDS), warc_gz(*RECORDS), gzip.compress(b"".join(RECORDS))]))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 400)))
    content = content[:start] + data.draw(st.binary(max_size=60)) + content[end:]
    if content.startswith(b"\x1f\x8b\x08"):
        assert set(captions(content)) <= set(CAPTIONS)  # every member has a checksum
    else:
        captions(content)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000))
def test_any_bytes_are_read_as_a_crawl(content):
    for prefix in (
        b"",
        b"\x1f\x8b\x08",
        b"WARC/1.0\r\n",
        b"WARC/1.0\r\nContent-Length: 40\r\nWARC-Type: response\r\n\r\n",
    ):
        extracted(prefix + content)
    extracted(page_record(content))
    extracted(
        page_record(
            content, headers="Content-Type: text/html\r\nContent-Encoding: gzip, br\r\nTransfer-Encoding: chunked"
        )
    )


def test_a_member_as_long_as_the_one_before_it_whose_header_differs_is_not_skipped():
    times = (0, 1, 0, 0, 1, 1, 0)
    content = b"".join(gzip.compress(RECORDS[number % 6], mtime=time) for number, time in enumerate(times))
    assert len({len(record) for record in RECORDS}) == 1
    assert captions(content) == [*CAPTIONS, CAPTIONS[0]]
