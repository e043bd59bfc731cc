"""An image tower with one linear layer that predicts words: the baselines of the paper's section 2.3."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from diptych.config.schema import ModelConfig
from diptych.config.stages import Stage
from diptych.model.image_tower import ImageTower


class WordPredictor(nn.Module):
    """Gives logits of words, or of n-grams, for a picture; it has no text tower and no projection."""

    text: None = None
    logit_scale: None = None
    logit_bias: None = None

    def __init__(self, config: ModelConfig, num_outputs: int, *, stages: Sequence[Stage] = ()):
        super().__init__()
        self.image = ImageTower(config.image, None, stages)
        self.words = nn.Linear(self.image.width, num_outputs)

    def forward(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, row_keys: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The logits f[batch outputs] of images u8[batch 3 H W]; the captions are not looked at."""
        return (self.words(self.encode_image(images, row_keys)),)

    def encode_image(self, images: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """The features f[batch width] of images u8[batch 3 H W]."""
        return self.image.features(images, row_keys)
