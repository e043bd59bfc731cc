"""Use a trained model: load a model folder or a run, embed pictures and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diptych.config.schema import ModelConfig
from diptych.data.picture_safety import PictureError
from diptych.data.picture_values import Picture, pictures_in, rgb_image
from diptych.data.preprocessing import preprocess
from diptych.data.tokenizer import Tokenizer
from diptych.errors import UserError
from diptych.loss import WordLoss
from diptych.model.dual_encoder import DualEncoder, load_weights, model_of, unit_norm
from diptych.model.word_predictor import WordPredictor
from diptych.model_folder import model_folder, predicts_words, read_model_folder, read_word_predictor
from diptych.world import choose_device, explain_full_memory

Value = TypeVar("Value")
Made = TypeVar("Made")

FEWER = (
    "free some, embed fewer at once (batch_size), or use another device, such as the CPU (device='cpu', --device cpu)"
)
"""What to do if the device's memory is full."""
TEXTS_AT_ONCE = 256


class Encoder:
    """A model in evaluation mode with its tokenizer and its picture preprocessing."""

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer, config: ModelConfig, device: torch.device):
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.config = config
        self.device = device

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities before a softmax (1 / temperature)."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed pictures u8[batch 3 H W] of the model's size as f32[batch dim] of unit norm, on the CPU.

        Raises:
            TypeError, ValueError: the images have another type, shape or size.
        """
        size = self.config.image.image_size
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"got {kind}; expected a tensor of torch.uint8 [batch 3 {size} {size}]")
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            shape = " ".join(map(str, images.shape))
            raise ValueError(
                f"got a tensor [{shape}]; expected [batch 3 {size} {size}], the model's picture size; "
                "embed_pictures resizes pictures of any size"
            )
        with explain_full_memory(self.device, FEWER):
            return self.model.encode_image(images.to(self.device)).cpu()

    def embed_pictures(self, pictures: Picture | Iterable[Picture], batch_size: int = 64) -> Tensor:
        """Embed pictures in any form of `Picture` as f32[n dim] of unit norm, on the CPU; one picture as [1 dim].

        A file, its bytes, its Pillow image and an array or tensor of its pixels have equal embeddings.

        Raises:
            PictureError, OSError: one of them cannot be read as a picture.
            TypeError, ValueError: one is something other than a picture, or the batch size is below 1.
        """
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for batch in _batches(pictures_in(pictures), batch_size, self.prepare):
            embeddings.append(self.embed_prepared(batch))
        return torch.cat(embeddings)

    def prepare(self, picture: Picture) -> Tensor:
        """The pixels u8[3 H W] of a picture at the model's size.

        Raises:
            PictureError, OSError, TypeError, ValueError: as `embed_pictures`.
        """
        return preprocess(rgb_image(picture), self.config.image)

    def embed_prepared(self, prepared: Sequence[Tensor]) -> Tensor:
        """Embed one or more pictures from `prepare`, all at once, as f32[n dim] of unit norm, on the CPU."""
        return self.embed_images(_stacked(prepared))

    def embed_with_features(self, pictures: Iterable[Picture], batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Embed one or more pictures as `embed_pictures` does, and return their features f32[n width] as well.

        The features are what the image tower's trunk gives: before the projection, and not normalised. The attention
        pooling of a CLIP-ResNet ends with the projection, so its features are the embeddings before the normalisation.

        Raises:
            PictureError, OSError, TypeError, ValueError: as `embed_pictures`.
        """
        batches = _batches(pictures_in(pictures), batch_size, self.prepare)
        embeddings, features = zip(*map(self.embed_prepared_with_features, batches), strict=True)
        return torch.cat(embeddings), torch.cat(features)

    @torch.inference_mode()
    def embed_prepared_with_features(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embed one or more pictures from `prepare`, all at once, with their features as `embed_with_features` does."""
        with explain_full_memory(self.device, FEWER):
            features = self.model.image.features(_stacked(prepared).to(self.device))
            return unit_norm(self.model.image.project(features)).cpu(), features.float().cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: str | Iterable[str], batch_size: int = 256) -> Tensor:
        """Embed texts as f32[n dim] of unit norm, on the CPU; one text as [1 dim].

        Raises:
            TypeError, ValueError: one of them is not a str, or the batch size is below 1.
        """
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for batch in _batches(_texts_in(texts), batch_size, _text):
            rows = self.tokenizer(batch, self.config.text.context_length)
            with explain_full_memory(self.device, FEWER):
                tokens, lengths = (torch.from_numpy(array).to(self.device) for array in rows)
                embeddings.append(self.model.encode_text(tokens, lengths).cpu())
        return torch.cat(embeddings)


class WordEncoder:
    """A model in evaluation mode that predicts words: its embedding of a picture is the feature that predicts them."""

    logit_scale = 1.0

    def __init__(
        self, model: WordPredictor, words: WordLoss, tokenizer: Tokenizer, config: ModelConfig, device: torch.device
    ):
        self.model, self.words = model.to(device).eval(), words.to(device)
        self.tokenizer, self.config, self.device = tokenizer, config, device

    @torch.inference_mode()
    def embed_pictures(self, pictures: Picture | Iterable[Picture], batch_size: int = 64) -> Tensor:
        """The features f32[n width] of pictures, not normalised, on the CPU.

        Raises:
            PictureError, OSError, TypeError, ValueError: as `Encoder.embed_pictures`.
        """
        features = [torch.empty(0, self.model.image.width)]
        for batch in _batches(pictures_in(pictures), batch_size, self.prepare):
            features.append(self.embed_prepared(batch))
        return torch.cat(features)

    def prepare(self, picture: Picture) -> Tensor:
        """The pixels u8[3 H W] of a picture at the model's size.

        Raises:
            PictureError, OSError, TypeError, ValueError: as `Encoder.embed_pictures`.
        """
        return preprocess(rgb_image(picture), self.config.image)

    @torch.inference_mode()
    def embed_prepared(self, prepared: Sequence[Tensor]) -> Tensor:
        """The features of one or more pictures from `prepare`, computed all at once."""
        with explain_full_memory(self.device, FEWER):
            return self.model.encode_image(_stacked(prepared).to(self.device)).float().cpu()

    def embed_texts(self, texts: Any) -> Tensor:
        raise UserError(
            f"this model predicts words (loss.name {self.words.name}) and gives no embeddings of texts; measure it by "
            f"--zero-shot or --linear-probe"
        )

    @torch.inference_mode()
    def scores(self, features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """f32[pictures texts]: how probable each text is for each picture, as a logarithm.

        features: f32[pictures width], from `embed_pictures`.
        """
        rows, numbers = self.tokenizer(texts, self.config.text.context_length)
        tokens, lengths = (torch.from_numpy(each).to(self.device) for each in (rows[:, : numbers.max()], numbers))
        logits = self.model.words(torch.from_numpy(features).to(self.device))
        parts = [
            self.words.scores(logits, tokens[first : first + TEXTS_AT_ONCE], lengths[first : first + TEXTS_AT_ONCE])
            for first in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(parts, dim=1).cpu().numpy()


def _stacked(prepared: Sequence[Tensor]) -> Tensor:
    """u8[n 3 H W] of pictures u8[3 H W], in channels_last as `prepare` makes them, which is the order in memory."""
    return torch.stack([each.permute(1, 2, 0) for each in prepared]).permute(0, 3, 1, 2)


def _batches(values: Iterable[Value], size: int, made: Callable[[Value], Made]) -> Iterator[list[Made]]:
    """Apply `made` to each value and yield the results in lists of `size`; an error names the position of its value.

    Raises:
        TypeError, ValueError: the values have no order (a set or a mapping), the size is below 1, or `made` raised it.
    """
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise ValueError(f"batch_size is {size!r}; expected a whole number from 1")
    if not isinstance(values, Iterable) or isinstance(values, Mapping | Set | bytes):
        raise TypeError(f"got {type(values).__name__}; expected a list, an array or an iterator, or one alone")
    batch: list[Made] = []
    for place, value in enumerate(values):
        try:
            batch.append(made(value))
        except (TypeError, ValueError) as error:
            if isinstance(values, list) and len(values) == 1:
                raise
            raise _with_place(error, place) from error
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_place(error: TypeError | ValueError, place: int) -> TypeError | ValueError:
    message = f"number {place}, counted from 0: {error}"
    if isinstance(error, PictureError):
        return PictureError(error.reason, message)
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def _texts_in(value: Any) -> Iterable[str]:
    """The texts of the value; one text becomes a list of one."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return [value.item()]
    return [value] if isinstance(value, str) else value


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"got {type(text).__name__}; expected a text (str)")
    return text


def load(path: str | Path, device: str | torch.device | None = None, *, ema: bool = False) -> Encoder:
    """Load the encoder of a model folder or of a run's newest checkpoint, onto the GPU if there is one.

    ema: load the averaged weights, of a run that keeps them (`training.ema_decay`).

    Raises:
        ValueError: the model is missing or damaged, it has no averaged weights, or there is no such device.
    """
    return _load_encoder(model_folder(path, ema=ema), choose_device(device))


def load_to_measure(
    path: str | Path, device: str | torch.device | None = None, *, ema: bool = False
) -> Encoder | WordEncoder:
    """Load as `load` does, also a model that predicts words."""
    folder, chosen = model_folder(path, ema=ema), choose_device(device)
    if not predicts_words(folder):
        return _load_encoder(folder, chosen)
    state, config, tokenizer, words = read_word_predictor(folder)
    model = WordPredictor(config, words.num_outputs)
    load_weights(model, state)
    with explain_full_memory(chosen, FEWER):
        return WordEncoder(model, words, tokenizer, config, chosen)


def _load_encoder(folder: Path, chosen: torch.device) -> Encoder:
    state, config, tokenizer = read_model_folder(folder)
    model = model_of(config, tokenizer.vocab_size, state)
    with explain_full_memory(chosen, FEWER):
        return Encoder(model, tokenizer, config, chosen)
