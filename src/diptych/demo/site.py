"""The picture cards as a small web site, with the difficulties that a crawler meets on real sites.

    /                          the sections
    /SECTION/1.html …          cards, each with its caption written in one of the ways that are common on the web
    /popular.html              cards that are also on other pages: duplicates
    /calendar/2026-01.html …   a trap: every page links to a next one, without end
    /members/…                 disallowed by robots.txt

Every page has icons, tracking pixels, data: URIs, file names as captions, and advertisements. A few pictures are
broken, missing, of another kind than their name says, or served with `X-Robots-Tag: noai`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.errors import UserError

CARDS_PER_PAGE = 100
NUM_POPULAR = 200
HARMED_PER_THOUSAND = 3
"""For each kind in `_HARMS`, how many cards of a thousand have a second picture that cannot be used."""

ROBOTS = b"User-agent: *\nDisallow: /members/\n"
_STYLE = "body{font-family:sans-serif;max-width:60em;margin:auto} figure{display:inline-block}"
_JUNK = """
<a href="/"><img src="/icons/home.png" width="16" height="16" alt="Home"></a>
<img src="/count.gif?page={page}" width="1" height="1" alt="">
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="spacer of one pixel">
<img src="/banner.png" alt="banner_728x90.png">
<img src="/offer.png" alt="Click here to buy now!!!">
<img src="/IMG_20260131_0815.jpg" alt="IMG_20260131_0815.jpg">
"""
_HARMS = ("missing", "broken", "page", "noai")


@dataclass(frozen=True)
class Answer:
    """The site's answer to a request."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Card:
    name: str
    caption: str
    section: str


class DemoSite:
    """Answers requests for the site's paths; keeps only names and captions in memory."""

    def __init__(self, cards: Path, seed: int):
        """cards: a folder of NAME.png, each with its caption in NAME.txt."""
        self._folder = cards
        self._random = np.random.default_rng((seed, 4))
        self._cards = {path.stem: _read_card(path) for path in sorted(cards.glob("*.txt"))}
        if not self._cards:
            raise UserError(f"{cards} contains no captioned cards; draw them first")
        self._pages = dict(self._lay_out())

    def answer(self, path: str) -> Answer:
        """The answer for a path, given without host and query."""
        if path == "/robots.txt":
            return Answer(200, ROBOTS, "text/plain")
        if path in self._pages:
            return Answer(200, self._pages[path].encode(), "text/html; charset=utf-8")
        if found := re.fullmatch(r"/calendar/(\d+)-(\d+)\.html", path):
            return Answer(200, _calendar(int(found[1]), int(found[2])).encode(), "text/html; charset=utf-8")
        if found := re.fullmatch(r"/cards/(\w+?)(?:_(\w+))?\.png", path):
            return self._picture(found[1], found[2])
        if path.startswith("/members/"):
            return Answer(200, b"<p>Members only.", "text/html")
        return Answer(404, b"<h1>Not found</h1>", "text/html")

    def _picture(self, name: str, harm: str | None) -> Answer:
        if name not in self._cards or harm == "missing":
            return Answer(404, b"<h1>Not found</h1>", "text/html")
        data = (self._folder / f"{name}.png").read_bytes()
        if harm == "broken":
            return Answer(200, data[: len(data) // 2], "image/png")
        if harm == "page":
            return Answer(200, b"<html><body>This picture has moved.</body></html>", "image/png")
        return Answer(200, data, "image/png", (("X-Robots-Tag", "noai"),) if harm == "noai" else ())

    def _lay_out(self) -> Iterator[tuple[str, str]]:
        """Yield the path and the HTML of each page."""
        sections: dict[str, list[_Card]] = {}
        for card in self._cards.values():
            sections.setdefault(card.section, []).append(card)
        links = []
        for section, cards in sorted(sections.items()):
            starts = range(0, len(cards), CARDS_PER_PAGE)
            for number, start in enumerate(starts, start=1):
                path = f"/{section}/{number}.html"
                following = f"/{section}/{number + 1}.html" if number < len(starts) else None
                yield path, self._page(f"{section} {number}", cards[start : start + CARDS_PER_PAGE], path, following)
            links.append(f'<li><a href="/{section}/1.html">{html.escape(section)}</a>')
        cards = list(self._cards.values())
        popular = [cards[number] for number in self._random.permutation(len(cards))[:NUM_POPULAR]]
        yield "/popular.html", self._page("Popular", popular, "/popular.html", None)
        more = [
            '<li><a href="popular.html">Popular</a>',
            '<li><a href="calendar/2026-01.html">Calendar</a>',
            '<li><a href="/members/list.html">Members</a>',
        ]
        yield "/", _document("Picture cards", f"<ul>{''.join([*links, *more])}</ul>")

    def _page(self, title: str, cards: Sequence[_Card], path: str, following: str | None) -> str:
        shown = []
        for card in cards:
            way = _WAYS[int(self._random.integers(len(_WAYS)))]
            shown.append(way(f"/cards/{card.name}.png", html.escape(card.caption)))
            for harm in _HARMS:
                if self._random.random() < HARMED_PER_THOUSAND / 1000:
                    shown.append(_plain(f"/cards/{card.name}_{harm}.png", html.escape(card.caption)))
        link = f'<p><a href="{following}">Next page</a>' if following else ""
        return _document(title, _JUNK.format(page=path) + "\n".join(shown) + link)


def _plain(source: str, caption: str) -> str:
    return f'<img src="{source}" alt="{caption}">'


def _figure(source: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def _lazy(source: str, caption: str) -> str:
    return f'<img src="/icons/wait.gif" data-src="{source}" alt="{caption}" loading="lazy">'


def _responsive(source: str, caption: str) -> str:
    return f'<img srcset="/small{source} 24w, {source} 48w" src="/small{source}" alt="{caption}">'


def _picture_element(source: str, caption: str) -> str:
    return f'<picture><source srcset="{source} 2x, /small{source}"><img src="/small{source}" alt="{caption}"></picture>'


_WAYS: tuple[Callable[[str, str], str], ...] = (_plain, _plain, _figure, _lazy, _responsive, _picture_element)


def _document(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{html.escape(title)}</h1>{body}</body></html>'


def _calendar(year: int, month: int) -> str:
    following = f"{year + month // 12}-{month % 12 + 1:02}"
    return _document(f"{year}-{month:02}", f'<p>Nothing on.<p><a href="/calendar/{following}.html">Next month</a>')


def _read_card(caption: Path) -> _Card:
    text = caption.read_text(encoding="utf-8").strip()
    return _Card(caption.stem, text, f"section-{int(caption.stem) % 40:02}")
