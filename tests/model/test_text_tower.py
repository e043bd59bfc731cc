"""The text tower is causal, takes its feature at the end token, and is initialised as in OpenAI's code."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.model.dual_encoder import DualEncoder
from diptych.model.packed_captions import PackedCaptions
from diptych.model.text_tower import TextTower

CONFIG = TextTowerConfig(context_length=16, width=32, heads=2, layers=2)


def text_tower(config=CONFIG, vocab_size=50):
    torch.manual_seed(0)
    return TextTower(config, vocab_size, embed_dim=24).eval()


def captions(lengths, context_length=16, vocab_size=50):
    tokens = torch.randint(1, vocab_size, (len(lengths), context_length), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor(lengths, dtype=torch.int32)
    return (tokens * (torch.arange(context_length) < lengths[:, None])).int(), lengths


def dual_encoder():
    torch.manual_seed(0)
    overrides = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 16}
    image = ImageTowerConfig(name="vit_base_patch32_clip_224", image_size=32, overrides=overrides)
    return DualEncoder(ModelConfig(embed_dim=24, image=image, text=CONFIG), 50, 2.0).eval()


def padded_features(tower: TextTower, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The same features, computed with padding and a mask, as the paper's text tower is usually written."""
    hidden = tower.token_embedding(tokens) + tower.positional_embedding[: tokens.shape[1]]
    for block in tower.transformer.resblocks:
        fused = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
        query, key, value = fused.unflatten(2, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
        hidden = hidden + block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return tower.ln_final(hidden[torch.arange(len(tokens)), lengths.long() - 1]) @ tower.text_projection


@pytest.mark.parametrize("lengths", [[3, 7, 5], [16, 16], [9, 2, 9, 2, 16, 1, 9], [4]], ids=str)
def test_captions_without_their_padding_have_the_same_features_and_gradients(lengths):
    tower = text_tower()
    tokens, lengths = captions(lengths)
    direction = torch.randn(len(tokens), 24, generator=torch.Generator().manual_seed(2))
    results = []
    for features in (tower(tokens, lengths), padded_features(tower, tokens, lengths)):
        tower.zero_grad()
        (features * direction).sum().backward()
        results.append([features.detach(), *(parameter.grad for parameter in tower.parameters())])
    for packed, padded in zip(*results, strict=True):
        # Kernels sum in another order: only rounding of fp32.
        torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6 * float(padded.abs().max()))


@torch.no_grad()
def test_tokens_after_the_end_token_change_nothing():
    model = dual_encoder()
    tokens, lengths = captions([3, 16, 5])
    expected = model.encode_text(tokens, lengths)
    padded = torch.where(torch.arange(16) < lengths[:, None], tokens, 49).int()
    assert torch.equal(model.encode_text(padded, lengths), expected)


@torch.no_grad()
def test_the_feature_is_read_at_the_length_and_not_at_the_largest_id():
    tower = text_tower()
    tokens, lengths = captions([6])
    tokens[0, 2] = 49
    other_end = tokens.clone()
    other_end[0, 5] = tokens[0, 5] % 48 + 1
    assert (tower(tokens, lengths) - tower(other_end, lengths)).abs().max() > 1e-3


@torch.no_grad()
def test_every_token_of_a_caption_counts():
    tower = text_tower()
    tokens, lengths = captions([8])
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = tokens[0, place] % 48 + 1
        assert (tower(tokens, lengths) - tower(changed, lengths)).abs().max() > 1e-5, place


def test_weights_start_with_the_papers_deviations():
    config = TextTowerConfig(context_length=77, width=256, heads=4, layers=3)
    tower = text_tower(config, vocab_size=1000)
    block = tower.transformer.resblocks[1]
    residual = 256**-0.5 * 6**-0.5
    deviations = {
        tower.token_embedding.weight: 0.02,
        tower.positional_embedding: 0.01,
        tower.text_projection: 256**-0.5,
        block.attn.in_proj_weight: 256**-0.5,
        block.attn.out_proj.weight: residual,
        block.mlp.c_fc.weight: 512**-0.5,
        block.mlp.c_proj.weight: residual,
    }
    for parameter, expected in deviations.items():
        # At least 6,000 numbers each: their deviation is known to 1 % (one sigma), 4 sigma are allowed.
        assert parameter.std().item() == pytest.approx(expected, rel=0.04)
    for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.ln_1.bias, tower.ln_final.bias):
        assert not bias.any()
    assert block.mlp.c_fc.bias.abs().max() <= 256**-0.5 and block.mlp.c_fc.bias.any()
    assert block.mlp.c_proj.bias.abs().max() <= 1024**-0.5 and block.mlp.c_proj.bias.any()


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 30 cannot be split over model.text.heads 4"):
        text_tower(TextTowerConfig(width=30, heads=4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_for_any_lengths_gives_what_groups_of_equal_lengths_give():
    lengths = torch.tensor([3, 7, 7, 1, 12])
    captions = PackedCaptions.of(lengths, 16, torch.device("cuda"))
    query, key, value = torch.randn(3, int(lengths.sum()), 2, 64, device="cuda", dtype=torch.bfloat16)
    in_groups = replace(captions, has_varlen_kernel=False).attend(query, key, value)
    # bf16 has eight bits of mantissa, and sums have another order.
    torch.testing.assert_close(captions.attend(query, key, value), in_groups, atol=1e-2, rtol=1e-2)
