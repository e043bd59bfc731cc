from typing import Any

import pytest
import torch

from diptych.config.schema import ImageTowerConfig
from diptych.model.image_tower import ImageTower, check_picture_size
from diptych.model.patch_dropout import PatchDropout

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "patch_drop_rate": 0.5}
EVA = {**VIT, "use_rot_pos_emb": True}


def kept(rate: float, keys: torch.Tensor, num_patches: int) -> torch.Tensor:
    """The numbers of the patches that each row keeps."""
    dropout = PatchDropout(rate, 1, gives_indices=True)
    dropout.row_keys = keys
    tokens = torch.arange(-1.0, num_patches).view(1, -1, 1).expand(len(keys), -1, -1)
    chosen, indices = dropout(tokens)
    assert (chosen[:, 0] == -1).all(), "the class token stays"
    assert torch.equal(chosen[:, 1:, 0].long(), indices)
    return indices


def test_a_row_keeps_its_patches_whatever_rows_are_next_to_it():
    keys = torch.arange(10**10, 10**10 + 64)
    together = kept(0.75, keys, 49)
    assert together.shape == (64, 12) and (together.diff() > 0).all()
    assert torch.equal(torch.cat([kept(0.75, part, 49) for part in keys.split(7)]), together)
    assert len(set(map(tuple, together.tolist()))) == 64, "and has patches of its own"


def test_every_patch_and_every_two_patches_are_kept_equally_often():
    rows, patches, rate = 20_000, 9, 0.7
    is_kept = torch.zeros(rows, patches).scatter_(1, kept(rate, torch.arange(rows) - 2**40, patches), 1.0)
    number = 2  # of 9: int(2.7)
    share = number / patches
    # Six standard deviations of a share among so many rows.
    assert (is_kept.mean(0) - share).abs().max() < 6 * (share * (1 - share) / rows) ** 0.5
    both = is_kept.T @ is_kept / rows
    pairs = both[torch.triu(torch.ones(patches, patches), 1).bool()]
    chance = number * (number - 1) / (patches * (patches - 1))
    assert (pairs - chance).abs().max() < 6 * (chance * (1 - chance) / rows) ** 0.5


@pytest.mark.parametrize(("name", "overrides"), [("vit_base_patch32_clip_224", VIT), ("eva02_tiny_patch14_224", EVA)])
def test_patch_dropout_depends_on_the_row_in_training_and_keeps_all_patches_in_use(
    name: str, overrides: dict[str, Any]
):
    config = ImageTowerConfig(name=name, image_size=32, overrides=overrides)
    with torch.device("meta"):
        check_picture_size(config, ImageTower(config, 8))
    torch.manual_seed(0)
    tower = ImageTower(config, 8)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    keys = torch.tensor([5, 6, 7, 8])
    features = tower(images, keys)
    # Halves of the rows are summed in another order, a small difference; masks of other rows would be a large one.
    assert torch.allclose(torch.cat([tower(images[:2], keys[:2]), tower(images[2:], keys[2:])]), features, atol=1e-5)
    assert not torch.allclose(tower(images, keys + 10), features, atol=1e-3)
    tower.eval()
    whole = tower(images)
    assert not torch.allclose(whole, features, atol=1e-3)
    assert torch.equal(tower(images, keys), whole)
