"""The embeddings of all that is evaluated: each computed once, and the work divided among ranks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from PIL import Image

from diptych.evaluation.embedding import PICTURES_AT_ONCE, Embedded, PictureEncoder, embed_part, joined_parts
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array

TEXTS_AT_ONCE = 256

Made = TypeVar("Made")


class Ranks(Protocol):
    """The processes that share the work of an evaluation."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def together(self, make: Callable[[], Made], /) -> list[Made]:
        """Call `make` on every rank, and return what it returned on each of them, on every rank.

        If it raises on one of them, an error is raised on all of them.
        """


@dataclass(frozen=True)
class Alone:
    """A single process."""

    rank: int = 0
    size: int = 1

    def together(self, make: Callable[[], Made], /) -> list[Made]:
        return [make()]


@dataclass(frozen=True)
class _EmbeddingThenFeatures:
    """Embeds a picture as one row: its embedding, followed by the features of the image tower."""

    encoder: Any

    def prepare(self, picture: Image.Image) -> Any:
        return self.encoder.prepare(picture)

    def embed_prepared(self, prepared: Sequence[Any]) -> Array:
        return np.concatenate(self.encoder.embed_prepared_with_features(prepared), axis=1)


class Features:
    """What an encoder makes of pictures and texts.

    Pictures are embedded once, however many evaluators ask for them. Each rank embeds a share, and all get the whole.
    Batches are the same for any number of ranks, so the numbers are the same too.
    """

    def __init__(self, encoder: PictureEncoder, ranks: Ranks | None = None):
        self.encoder = encoder
        self._ranks = ranks or Alone()
        self._known: dict[Hashable, Any] = {}

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities before a softmax (1 / temperature)."""
        return float(cast(Any, self.encoder).logit_scale)

    def pictures(self, pictures: Pictures) -> Embedded:
        """Embed all pictures that can be decoded; every rank must call it.

        Raises:
            ValueError: none can be decoded, or a file cannot be read.
        """

        return self.once(_key(pictures), lambda: self._embedded(self.encoder, pictures))

    @property
    def of_tower(self) -> str:
        """What `before_projection` gives, in a few words for a result."""
        if not hasattr(self.encoder, "embed_prepared_with_features"):
            return "embeddings"
        projects = cast(Any, self.encoder).model.image.proj is not None
        return f"image tower, {'before the projection' if projects else 'whose pooling includes the projection'}"

    def before_projection(self, pictures: Pictures) -> Embedded:
        """The features of the image tower before the projection; the embeddings of an encoder that has no such tower.

        The same pass embeds the pictures. So they are embedded once if this is called before `pictures`.

        Raises:
            ValueError: as `pictures`.
        """
        if not hasattr(self.encoder, "embed_prepared_with_features"):
            return self.pictures(pictures)

        def compute() -> Embedded:
            both = self._embedded(_EmbeddingThenFeatures(self.encoder), pictures)
            width = cast(Any, self.encoder).config.embed_dim
            self.once(_key(pictures), lambda: replace(both, embeddings=both.embeddings[:, :width].copy()))
            return replace(both, embeddings=both.embeddings[:, width:].copy())

        return self.once(("before_projection", *_key(pictures)), compute)

    @contextmanager
    def holding(self, pictures: Pictures, embedded: Embedded) -> Iterator[None]:
        """Use these embeddings of the pictures during the block, and forget them after it."""
        self._known[_key(pictures)] = embedded
        try:
            yield
        finally:
            del self._known[_key(pictures)]

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Embed texts as f32[texts dim]; every rank must call it."""
        share = self._share(len(texts), TEXTS_AT_ONCE)
        parts = self._ranks.together(lambda: self._embed_share(texts[share.start : share.stop]))
        return np.concatenate([part for part in parts if len(part)])

    def of(self, encoder: PictureEncoder) -> Features:
        """The features of another encoder, computed by the same ranks."""
        return self.once(cast(Hashable, encoder), lambda: Features(encoder, self._ranks))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned when it was first called with this key; for what several evaluations need."""
        if key not in self._known:
            self._known[key] = make()
        return cast(Made, self._known[key])

    def _embedded(self, encoder: PictureEncoder, pictures: Pictures) -> Embedded:
        share = self._share(len(pictures), PICTURES_AT_ONCE)
        return joined_parts(pictures, self._ranks.together(lambda: embed_part(encoder, pictures, share)))

    def _share(self, number: int, at_once: int) -> range:
        """This rank's places of so many, in whole batches."""
        batches = -(-number // at_once)
        first, stop = (batches * each // self._ranks.size for each in (self._ranks.rank, self._ranks.rank + 1))
        return range(min(first * at_once, number), min(stop * at_once, number))

    def _embed_share(self, texts: Sequence[str]) -> Array:
        encoder = cast(Any, self.encoder)
        parts = [
            np.asarray(encoder.embed_texts(list(texts[first : first + TEXTS_AT_ONCE])))
            for first in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 0))


def _key(pictures: Pictures) -> tuple[Hashable, ...]:
    return pictures.location, pictures.names
