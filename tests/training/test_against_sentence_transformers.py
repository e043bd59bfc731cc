"""The gradient of a step in parts equals that of sentence-transformers' cached loss, which has the same design.

It needs sentence-transformers, in an environment of its own: CONTRIBUTING.md.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import largest_difference, make_engine, new_model, start_weights
from tests.training.tiny import PAIRS, global_batches, rows_of, tiny_config

pytestmark = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="it is not installed")

STAGES = (0, 3)
BETA1 = 0.9


class EitherTower(torch.nn.Module):
    """Our towers with their interface: one input at a time, a mapping of tensors whose rows are split in parts."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def __getitem__(self, number: int) -> torch.nn.Module:
        """Give the first module, since they check whether it is a table of embeddings."""
        return self.model

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "images" in features:
            return {"sentence_embedding": self.model.encode_image(features["images"])}
        return {"sentence_embedding": self.model.encode_text(features["tokens"], features["lengths"])}


def their_gradient(rank: int, size: int, pairs_at_once: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of this rank's pairs against those of all ranks."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = new_model(tiny_config())
    model.load_state_dict(start_weights())
    # Their scale is a number: a leaf in its place gets the derivative by the number, not by its logarithm.
    scale = model.logit_scale.detach().exp().requires_grad_()
    cached = CachedMultipleNegativesRankingLoss(
        EitherTower(model),
        mini_batch_size=pairs_at_once,
        gather_across_devices=size > 1,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    cached.scale = scale
    batch = rows_of(global_batches(1)[0], World(rank, rank, size).rows(PAIRS))
    texts = {"tokens": batch.tokens, "lengths": batch.lengths}
    loss = cached([{"images": batch.images}, texts], torch.empty(0))
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert scale.grad is not None
    return loss.item(), gradient | {"logit_scale": scale.grad * scale.detach()}


def our_gradient(rank: int, size: int, stage: int, pairs_at_once: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient as it reaches Adam, on rank 0."""
    config = tiny_config(stage=stage)
    machine = replace(config.machine, pairs_per_forward=pairs_at_once)
    optimizer = replace(config.optimizer, gradient_clip_norm=None)
    engine = make_engine(rank, size, replace(config, machine=machine, optimizer=optimizer))
    stats = engine.step(rows_of(global_batches(1)[0], World(rank, rank, size).rows(PAIRS)), 0).read()
    moments = engine.optimizer_state().moments["exp_avg"]
    return stats.loss, {name: moment / (1 - BETA1) for name, moment in moments.items()}


def both(rank: int, size: int, pairs_at_once: int) -> Any:
    ours = {stage: our_gradient(rank, size, stage, pairs_at_once) for stage in STAGES}
    return their_gradient(rank, size, pairs_at_once), ours


@pytest.mark.parametrize(("size", "pairs_at_once"), [(1, 4), (1, 5), (2, 2)])
def test_the_gradient_of_a_step_in_parts_is_theirs(size, pairs_at_once):
    ranks = run_ranks(size, both, size, pairs_at_once)
    losses, gradients = zip(*(theirs for theirs, _ in ranks), strict=True)
    expected = {name: sum(gradient[name] for gradient in gradients) / size for name in gradients[0]}
    norm = torch.nn.utils.get_total_norm(expected.values())
    for stage, (loss, gradient) in ranks[0][1].items():
        assert loss == pytest.approx(sum(losses) / size, rel=1e-6), stage
        assert largest_difference(gradient, expected) < 1e-6 * norm, stage
