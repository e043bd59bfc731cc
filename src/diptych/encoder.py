"""A trained model as others use it: load a model folder or a run, embed pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.config.schema import ModelConfig
from diptych.data.augment import centre_crop
from diptych.data.picture_safety import PictureError, open_picture
from diptych.data.tokenizer import Tokenizer
from diptych.model.dual_encoder import DualEncoder, load_weights
from diptych.model_folder import model_folder, read_model_folder
from diptych.world import choose_device

if TYPE_CHECKING:
    from PIL import Image


class Encoder:
    """A model in evaluation mode with its tokenizer and its picture preprocessing."""

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer, config: ModelConfig, device: torch.device):
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.config = config
        self.device = device

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax (1 / temperature)."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """u8[batch 3 H W] of the model's size → f32[batch dim] of unit norm, on the CPU."""
        return self.model.encode_image(images.to(self.device)).cpu()

    def embed_pictures(self, pictures: Sequence[str | Path | bytes | Image.Image], batch_size: int = 64) -> Tensor:
        """Files, encoded bytes or Pillow images → f32[n dim] of unit norm, on the CPU.

        Raises:
            PictureError, OSError: one of them is no readable picture.
        """
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(pictures), batch_size):
            batch = [self._pixels(picture) for picture in pictures[start : start + batch_size]]
            embeddings.append(self.embed_images(torch.stack(batch)))
        return torch.cat(embeddings)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts → f32[n dim] of unit norm, on the CPU."""
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            rows = self.tokenizer(batch, self.config.text.context_length)
            tokens, lengths = (torch.from_numpy(array).to(self.device) for array in rows)
            embeddings.append(self.model.encode_text(tokens, lengths).cpu())
        return torch.cat(embeddings)

    def _pixels(self, picture: str | Path | bytes | Image.Image) -> Tensor:
        if isinstance(picture, (str, Path)):
            try:
                return self._pixels(Path(picture).read_bytes())
            except PictureError as error:
                raise PictureError(error.reason, f"{picture}: {error}") from error
        image = open_picture(picture) if isinstance(picture, bytes) else picture.convert("RGB")
        return centre_crop(image, self.config.image.image_size)


def load(path: str | Path, device: str | torch.device | None = None) -> Encoder:
    """The encoder of a model folder or of a run's newest checkpoint; on the GPU where there is one.

    Raises:
        ValueError: no model there, or a damaged one; no such device.
    """
    chosen = choose_device(device)
    state, config, tokenizer = read_model_folder(model_folder(path))
    model = DualEncoder(config, tokenizer.vocab_size, 0.0)
    load_weights(model, state)
    return Encoder(model, tokenizer, config, chosen)
