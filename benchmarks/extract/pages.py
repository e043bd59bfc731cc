"""Pages like a crawl's, drawn, with the pairs that are on them; the same ones every time.

As many bytes, links and pictures a page as Common Crawl has: a WAT of about 26 kB and six captioned pictures (300,000
pairs in a file of 1.4 GB, cc2dataset's own figure), HTML of about 80 kB, a third of it scripts and styles.
"""

from __future__ import annotations

import html
import random
from dataclasses import dataclass, field
from typing import Any

WORDS = (
    "the of and a to in red old small house dog river mountain bridge night city woman child garden market train "
    "winter summer blue light street table paper window flower market stone photo view detail portrait church boat"
).split()
OTHER_WRITING = {
    "utf-8": ["café crème", "naïve façade", "“quoted” – dash", "日本の庭", "😀 party"],
    "windows-1252": ["café crème", "naïve façade", "“quoted” – dash", "Straße"],
    "euc-jp": ["日本の庭園", "東京の夜景", "古い町並み"],
    "shift_jis": ["日本の庭園", "東京の夜景", "古い町並み"],
    "gb18030": ["中国的花园", "北京的夜景", "古老的街道"],
    "utf-16-le": ["日本の庭園", "café crème"],
}
CHARSET_WEIGHTS = {"utf-8": 90, "windows-1252": 4, "euc-jp": 1, "shift_jis": 2, "gb18030": 2, "utf-16-le": 1}

IN_JAVA_ORDER = ("path", "alt", "title", "text", "method", "url")
"""Common Crawl's are written by Java, from hash maps."""

PairSet = set[tuple[str, str]]


@dataclass
class DrawnPage:
    url: str
    charset: str
    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    metas: list[dict[str, str]] = field(default_factory=list)
    links: list[dict[str, str]] = field(default_factory=list)
    """As a WAT lists them."""
    head_links: list[dict[str, str]] = field(default_factory=list)
    scripts: list[dict[str, str]] = field(default_factory=list)
    title: str = ""
    in_wat: PairSet = field(default_factory=set)
    """True pairs that the WAT contains."""
    in_html: PairSet = field(default_factory=set)

    def html(self) -> bytes:
        mark = "\ufeff" if self.charset.startswith("utf-16") else ""
        declared = "" if mark else f'<meta charset="{self.charset}">'
        head = "\n".join(self.head)
        text = f'{mark}<!DOCTYPE html>\n<html lang="en-GB"><head>{declared}\n{head}\n</head><body>\n'
        return (text + "\n".join(self.body) + "\n</body></html>\n").encode(self.charset, "xmlcharrefreplace")

    def html_metadata(self) -> dict[str, Any]:
        head = {"Title": self.title, "Metas": self.metas, "Link": self.head_links, "Scripts": self.scripts}
        links = [{key: link[key] for key in IN_JAVA_ORDER if key in link} for link in self.links]
        return {"Head": head, "Links": links}


class PageSource:
    def __init__(self, seed: int = 0):
        self._draw = random.Random(seed)
        self._number = 0

    def draw(self) -> DrawnPage:
        draw = self._draw
        self._number += 1
        charset = draw.choices(list(CHARSET_WEIGHTS), list(CHARSET_WEIGHTS.values()))[0]
        page = DrawnPage(f"https://www.site{self._number}.example/articles/{self._words(3, '-')}.html", charset)
        self._draw_head(page)
        for _ in range(draw.randrange(4, 9)):
            self._draw_menu(page)
            self._draw_article(page)
            page.body.append(f"<script>{self._script(draw.randrange(500, 3000))}</script>")
        self._draw_pictures(page)
        return page

    def _draw_head(self, page: DrawnPage) -> None:
        draw = self._draw
        page.title = self._caption(page, 8)
        page.head.append(f"<title>{html.escape(page.title)}</title>")
        for name in ("description", "keywords", "viewport", "generator", "twitter:card", "twitter:title", "robots"):
            self._add_meta(page, "name", name, self._words(draw.randrange(2, 15)))
        for name in ("og:type", "og:site_name", "og:locale", "og:url", "article:published_time"):
            self._add_meta(page, "property", name, self._words(4, "-"))
        if draw.random() < 0.4:
            title, address = self._caption(page, 6), self._address(page)
            self._add_meta(page, "property", "og:title", title)
            self._add_meta(page, "property", "og:image", address)
            page.in_wat.add((address, title))
            page.in_html.add((address, title))
        for rel in ("stylesheet", "stylesheet", "icon", "canonical", "alternate", "preload", "dns-prefetch"):
            href = f"/assets/{self._words(2, '/')}.css?ver={draw.randrange(1000)}"
            page.head.append(f'<link rel="{rel}" href="{href}" media="all">')
            page.head_links.append({"path": "LINK@/href", "url": href, "rel": rel})
        for _ in range(10):
            src = f"https://cdn.site.example/js/{self._words(2, '/')}.js?ver={draw.randrange(1000)}"
            page.head.append(f'<script src="{src}" async></script>')
            page.scripts.append({"path": "SCRIPT@/src", "url": src, "type": "text/javascript"})
        page.head.append(f"<style>{self._script(4000)}</style>")

    def _add_meta(self, page: DrawnPage, key: str, name: str, content: str) -> None:
        page.head.append(f'<meta {key}="{name}" content="{html.escape(content)}">')
        page.metas.append({key: name, "content": content})

    def _draw_menu(self, page: DrawnPage) -> None:
        page.body.append('<div class="menu menu-main"><ul id="menu-list" class="nav nav-pills nav-stacked">')
        for _ in range(self._draw.randrange(8, 22)):
            href, text = f"/{self._words(4, '-')}/{self._words(3, '-')}.html", self._words(4)
            page.body.append(
                f'<li class="menu-item menu-item-type-post"><a class="menu-link" href="{href}" title="{text}">'
                f'<span class="label">{text}</span></a></li>'
            )
            page.links.append({"path": "A@/href", "url": href, "title": text, "text": text})
        page.body.append("</ul></div>")

    def _draw_article(self, page: DrawnPage) -> None:
        page.body.append('<div class="row"><article class="post type-post"><h2 class="title">Heading</h2>')
        for _ in range(self._draw.randrange(4, 12)):
            href = f"../{self._words(2, '-')}"
            link = f'<a href="{href}">{self._words(2)}</a>'
            page.body.append(f'<p style="margin: 0">{self._words(40)} {link}, <b>{self._words(3)}</b>.</p>')
            page.links.append({"path": "A@/href", "url": href, "text": self._words(2)})
        page.body.append("</article></div>")

    def _draw_pictures(self, page: DrawnPage) -> None:
        kinds = [
            (self._plain, 50),
            (self._without_caption, 38),
            (self._tracker, 5),
            (self._placeholder, 8),
            (self._lazy, 5),
            (self._responsive, 5),
            (self._picture, 3),
            (self._figure, 5),
        ]
        functions, weights = zip(*kinds, strict=True)
        for draw in self._draw.choices(functions, weights, k=max(1, round(self._draw.lognormvariate(2.2, 0.7)))):
            draw(page)

    def _plain(self, page: DrawnPage) -> None:
        self._found(page, f'<img class="photo" src="{{}}" alt="{{}}" width="{self._draw.randrange(200, 900)}">')

    def _without_caption(self, page: DrawnPage) -> None:
        src = self._address(page)
        page.body.append(f'<img src="{src}" alt="">' if self._draw.random() < 0.5 else f'<img src="{src}" class="x">')
        page.links.append(
            {"path": "IMG@/src", "url": src, **({"alt": ""} if page.body[-1].endswith('alt="">') else {})}
        )

    def _tracker(self, page: DrawnPage) -> None:
        src = f"https://www.facebook.com/tr?id={self._draw.randrange(10**9)}"
        page.body.append(f'<noscript><img height="1" width="1" src="{src}" alt="pixel"></noscript>')
        page.links.append({"path": "IMG@/src", "url": src, "alt": "pixel"})

    def _placeholder(self, page: DrawnPage) -> None:
        """The WAT has the placeholder; the true pair is only in the HTML."""
        url, caption = self._address(page), self._caption(page)
        gif = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
        page.body.append(f'<img src="{gif}" data-src="{url}" alt="{html.escape(caption)}">')
        page.links.append({"path": "IMG@/src", "url": "data:image/gif;base64", "alt": caption})
        page.in_html.add((url, caption))

    def _lazy(self, page: DrawnPage) -> None:
        url, caption = self._address(page), self._caption(page)
        page.body.append(f'<img data-original="{url}" alt="{html.escape(caption)}">')
        page.in_html.add((url, caption))

    def _responsive(self, page: DrawnPage) -> None:
        url, caption = self._address(page), self._caption(page)
        sizes = ", ".join(f"{url}&amp;w={width} {width}w" for width in (320, 640, 1280))
        page.body.append(f'<img src="{url}" srcset="{sizes}" alt="{html.escape(caption)}">')
        page.links.append({"path": "IMG@/src", "url": url, "alt": caption})
        page.in_wat.add((url, caption))
        page.in_html.add((f"{url}&w=1280", caption))

    def _picture(self, page: DrawnPage) -> None:
        url, caption = self._address(page), self._caption(page)
        page.body.append(
            f'<picture><source type="image/webp" srcset="{url}&amp;x=1,2 1x, {url}&amp;x=2,3 2x">'
            f'<img data-lazy-src="{url}" alt="{html.escape(caption)}"></picture>'
        )
        page.in_html.add((f"{url}&x=2,3", caption))

    def _figure(self, page: DrawnPage) -> None:
        url, caption = self._address(page), self._caption(page)
        page.body.append(
            f'<figure class="wp-block-image"><img src="{url}" class="size-large">'
            f"<figcaption>{html.escape(caption)} <i>(photo)</i></figcaption></figure>"
        )
        page.links.append({"path": "IMG@/src", "url": url})
        page.in_html.add((url, f"{caption} (photo)"))

    def _found(self, page: DrawnPage, markup: str) -> None:
        url, caption = self._address(page), self._caption(page)
        page.body.append(markup.format(url, html.escape(caption)))
        page.links.append({"path": "IMG@/src", "url": url, "alt": caption})
        page.in_wat.add((url, caption))
        page.in_html.add((url, caption))

    def _address(self, page: DrawnPage) -> str:
        name = f"{self._words(3, '-')}-{self._draw.randrange(10**6)}.jpg?v=1"
        return f"https://cdn.{page.url[12:]}/{name}"

    def _caption(self, page: DrawnPage, num_words: int = 0) -> str:
        words = self._words(num_words or max(1, round(self._draw.lognormvariate(1.6, 0.6))))
        is_other = page.charset != "utf-8" or self._draw.random() < 0.1
        return f"{words} {self._draw.choice(OTHER_WRITING[page.charset])}" if is_other else words

    def _words(self, number: int, between: str = " ") -> str:
        return between.join(self._draw.choices(WORDS, k=number))

    def _script(self, num_bytes: int) -> str:
        statement = "if (a < b && c) { window.%s = function () { return '<div>' + %s.value; }; }\n"
        some = [statement % tuple(self._draw.choices(WORDS, k=2)) for _ in range(8)]
        return "".join(some * (num_bytes // 600 + 1))[:num_bytes]
