"""What is not wanted: captions that pages give to any picture, and the user's lists of phrases and hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from diptych.files import read_text

_NOT_OF_WORDS = re.compile(r"[\W_]+")


def words_of(caption: str) -> str:
    """The caption in lower case, with a single space for each run of characters other than letters and digits."""
    return _NOT_OF_WORDS.sub(" ", caption.casefold()).strip()


@dataclass(frozen=True)
class PhraseList:
    """Phrases that are found as whole words, in any case and with any punctuation between the words."""

    phrases: frozenset[str] = frozenset()

    @classmethod
    def of(cls, phrases: Iterable[str]) -> PhraseList:
        return cls(frozenset(words_of(phrase) for phrase in phrases) - {""})

    def is_in(self, caption: str) -> bool:
        if not self.phrases:
            return False
        words = words_of(caption).split(" ")
        return any(
            " ".join(words[first : first + length]) in self.phrases
            for length in self._lengths
            for first in range(len(words) - length + 1)
        )

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({phrase.count(" ") + 1 for phrase in self.phrases})


@dataclass(frozen=True)
class HostList:
    """Hosts with all their subdomains: `example.org` also blocks `img.example.org`."""

    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, hosts: Iterable[str]) -> HostList:
        return cls(frozenset(host.strip().strip(".").lower() for host in hosts) - {""})

    def has(self, url: str) -> bool:
        if not self.hosts:
            return False
        try:
            host = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        parts = host.split(".")
        return any(".".join(parts[first:]) in self.hosts for first in range(len(parts)))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a file in UTF-8 that are not empty."""
    lines = read_text(path, "name a file of one entry a line").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


_PHRASES = """
image; images; img; picture; pictures; photo; photos; photograph; pic; thumbnail; thumb; icon; logo; site logo;
company logo; banner; avatar; user avatar; profile; profile picture; profile photo; profile image; user;
placeholder; placeholder image; image placeholder; default image; no image; no photo; no picture; no image
available; no photo available; image not available; photo not available; image not found; not available; coming
soon; image coming soon; photo coming soon; loading; spacer; blank; untitled; alt; alt text; null; none;
undefined; nan; n a; test; header; footer; background; background image; header image; featured image; feature
image; main image; hero image; hero; cover; cover image; cover photo; post image; blog image; article image;
product; product image; product photo; gallery; gallery image; slide; slider; slideshow; arrow; arrow left; arrow
right; left arrow; right arrow; previous; next; prev; back; close; menu; search; share; print; email; e mail;
facebook; twitter; instagram; youtube; linkedin; pinterest; whatsapp; rss; tiktok; telegram; facebook logo;
twitter logo; google; app store; google play; star; star rating; rating; cart; shopping cart; play; play button;
video; advertisement; ad; ads; sponsored; banner ad; click here; click to enlarge; click to zoom; click for larger
image; enlarge; zoom; view; view larger; view larger image; view full size; view image; see more; read more; more;
download; upload; screenshot; captcha; qr code; tracking pixel; image description; photo description; image
credit; photo credit; photo by; image source; getty images; shutterstock; stock photo; stock image; creative
commons license; creative commons licence; open graph image; embedded image; image for post; image may contain;
photo of the day; bild; foto; fotos; bilder; vorschaubild; kein bild; kein bild verfügbar; platzhalter; mehr;
zurück; weiter; titelbild; symbolbild; beitragsbild; photo de profil; aucune image; image à la une; imagen;
imágenes; sin imagen; imagen destacada; foto de perfil; imagem; sem imagem; immagine; nessuna immagine;
afbeelding; geen afbeelding; фото; изображение; картинка; нет фото; нет изображения; аватар; логотип; 画像; 写真;
アイコン; ロゴ; サムネイル; 图片; 圖片; 照片; 头像; 暂无图片;
이미지; 사진; صورة; zdjęcie; obrazek; resim; fotoğraf; bilde; kuva
"""

BOILERPLATE = frozenset(words_of(phrase) for phrase in _PHRASES.split(";"))

BOILERPLATE_BEGINNINGS = (
    "click to enlarge",
    "click to view",
    "click here to",
    "click image to",
    "click on the image",
    "image may contain",
    "this image has an empty alt",
    "no alternative text",
    "no alt text",
    "image result for",
    "placeholder image for",
    "no image available",
    "powered by",
    "follow us on",
    "share on facebook",
    "share on twitter",
    "find us on",
    "opens in a new",
    "rated 0 out of",
)
