import pytest
import torch

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.model.dual_encoder import DualEncoder
from diptych.model.word_predictor import WordPredictor
from tests.model.test_image_tower import SMALL_CLIP_RESNET

OVERRIDES = {
    "vit_base_patch32_clip_224": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "resnet50_clip": SMALL_CLIP_RESNET,
    "resnet18": {"layers": [1, 1, 1, 1]},
}
TEXT = TextTowerConfig(context_length=8, width=32, heads=2, layers=1)


def config_of(name: str) -> ModelConfig:
    image = ImageTowerConfig(name=name, image_size=32, overrides=OVERRIDES[name])
    return ModelConfig(embed_dim=24, image=image, text=TEXT)


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224", "resnet50_clip"])
def test_a_token_head_reads_the_feature_before_the_projection_and_changes_no_embedding(name):
    config = config_of(name)
    torch.manual_seed(0)
    plain = DualEncoder(config, 50, 2.0).eval()
    torch.manual_seed(0)
    model = DualEncoder(config, 50, 2.0, token_head=True).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens, lengths = torch.ones(3, 8, dtype=torch.int32), torch.tensor([3, 8, 5])
    image, text, logits = model(images, tokens, lengths)
    expected_image, expected_text = plain(images, tokens, lengths)
    assert torch.allclose(image, expected_image, atol=1e-6) and torch.equal(text, expected_text)
    features, embeddings = model.image.before_and_after_projection(images)
    assert features.shape == (3, model.image.width) and embeddings.shape == (3, 24)
    assert model.token_head is not None and torch.equal(logits, model.token_head(features))


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224", "resnet50_clip", "resnet18"])
def test_a_word_predictor_has_a_gradient_for_every_parameter(name):
    model = WordPredictor(config_of(name), 50)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (logits,) = model(images, torch.ones(3, 8), torch.tensor([3, 8, 5]))
    assert logits.shape == (3, 50)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
