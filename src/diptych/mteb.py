"""Adapt a model to mteb, whose runner compares models on hundreds of public tasks:

    mteb.evaluate(diptych.mteb.load("runs/my"), mteb.get_tasks(["CIFAR10ZeroShot", "Flickr30kT2IRetrieval"]))

It needs mteb 2, which needs Python 3.11.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.encoder import Encoder
from diptych.encoder import load as load_encoder
from diptych.extras import pip_install
from diptych.files import sha256_of
from diptych.model_folder import model_folder, run_directory, weights_of

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"diptych.mteb needs mteb 2 ({error}): {pip_install('mteb')}", name=error.name) from error


class MtebEncoder(AbsEncoder):  # type: ignore[misc]
    """An encoder as mteb calls it."""

    def __init__(self, encoder: Encoder, meta: ModelMeta):
        self.encoder = encoder
        self.mteb_model_meta = meta

    def encode(self, inputs: Any, **_: Any) -> Tensor:
        """Embed the `image` and `text` columns of all batches as f32[rows dim], on the CPU.

        Rows that have both get the sum of the two embeddings, as mteb's own CLIP models do.

        inputs: a data loader; a batch has lists of Pillow images and of texts.
        """
        embeddings = [torch.empty(0, self.encoder.config.embed_dim)]
        for batch in inputs:
            parts = []
            if "image" in batch:
                parts.append(self.encoder.embed_pictures(batch["image"]))
            if "text" in batch:
                parts.append(self.encoder.embed_texts(batch["text"]))
            if not parts:
                raise ValueError(f"got {', '.join(batch)}; this model embeds image and text")
            embeddings.append(torch.stack(parts).sum(0))
        return torch.cat(embeddings)


def load(path: str | Path, device: str | torch.device | None = None, *, ema: bool = False) -> MtebEncoder:
    """Load a model folder or a run's newest checkpoint for `mteb.evaluate`; the arguments are those of `diptych.load`.

    mteb keeps results by name and revision: the name is `diptych/` and that of the run or folder, the revision is the
    beginning of the weights' sha256.
    """
    encoder = load_encoder(path, device, ema=ema)
    name = (run_directory(Path(path)) or Path(path)).resolve().name
    parameters = sum(each.numel() for each in encoder.model.parameters())
    return MtebEncoder(
        encoder,
        ModelMeta.create_empty(
            {
                "name": f"diptych/{name}{'-ema' if ema else ''}",
                "revision": sha256_of(weights_of(model_folder(path, ema=ema)))[:16],
                "modalities": ["image", "text"],
                "n_parameters": parameters,
                "embed_dim": encoder.config.embed_dim,
                "max_tokens": encoder.config.text.context_length,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        ),
    )
