"""Compile the towers' blocks with `torch.compile`: fewer and larger kernels, and less memory for the backward.

Blocks are compiled one by one rather than the whole model, for three reasons: DeepSpeed can reduce the gradients of
one block while the backward of the next runs, equal blocks are compiled once, and the names of parameters stay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diptych.agreement import on_any_rank
from diptych.config.stages import Stage
from diptych.errors import UserError
from diptych.model.dual_encoder import TrainedModel
from diptych.model.packed_captions import PackedCaptions
from diptych.model.text_tower import CausalAttention
from diptych.model.trunk import blocks_of
from diptych.world import World

logger = logging.getLogger(__name__)

MOST_VARIANTS = 64
"""How many versions of one block's code torch compiles before it runs further ones uncompiled. Blocks may differ, for
example in their drop rates."""


def image_blocks(model: TrainedModel) -> list[nn.Module]:
    """The blocks of the image tower.

    Raises:
        UserError: it has no blocks.
    """
    innermost = blocks_of(model.image.trunk)
    if not innermost:
        raise UserError(
            f"machine.compile_blocks: the image tower ({type(model.image.trunk).__name__}) has no blocks that are "
            f"known by name; leave the key out"
        )
    return innermost


def compile_blocks(
    model: TrainedModel, towers: nn.Module, num_pairs: int, stages: Sequence[Stage], world: World
) -> None:
    """Compile the blocks of both towers; if that fails, leave them as they are and log why. Every rank must call it.

    Compilation is tested at once with a forward and a backward of `towers` on as many pairs as a training step uses, of
    the sizes of each stage: training then uses the same compiled code, and a later failure could not be undone.
    DeepSpeed must not have wrapped the model yet.
    """
    # Imported at the top of the file these would cost every command two seconds.
    import torch._dynamo
    import torch._inductor.config

    # Layers with random masks must draw the same ones as uncompiled layers, also when a part goes through them twice.
    torch._inductor.config.fallback_random = True
    if hasattr(torch._inductor.config, "deterministic"):  # since torch 2.10
        # Without it kernels are chosen by measured speed, and their sums differ in the last bits.
        torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    images, texts = image_blocks(model), list(model.text.transformer.resblocks) if model.text is not None else []
    for block in images:
        # Batches of a stage have one size or two. With static shapes the code for a size is the same after a restart.
        block.compile(dynamic=False)
    for block in texts:
        # The numbers of tokens and of groups of equally long captions differ from batch to batch.
        block.compile(dynamic=True)
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.attend = torch.compiler.disable(PackedCaptions.attend)
    fault = None
    try:
        for stage in stages:
            _try(model, towers, num_pairs, stage)
    except Exception as error:  # a compiler may fail in any way
        fault = f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]
    if on_any_rank(world, fault is not None):
        for block in (*images, *texts):
            block._compiled_call_impl = None
        logger.warning(
            "machine.compile_blocks: the blocks run uncompiled, since torch.compile failed (%s)",
            fault or "on another rank",
        )


def _try(model: TrainedModel, towers: nn.Module, num_pairs: int, stage: Stage) -> None:
    """Run one forward and one backward, then remove gradients and restore buffers."""
    device, size, length = model.image.mean.device, stage.model.image.image_size, stage.model.text.context_length
    model.image.leave_out_patches(stage.patch_dropout)
    images = torch.zeros(num_pairs, 3, size, size, dtype=torch.uint8, device=device)
    tokens = torch.zeros(num_pairs, length, dtype=torch.int32, device=device)
    lengths = torch.arange(num_pairs) % length + 1
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        features: tuple[Tensor, ...] = towers(images, tokens, lengths, torch.arange(num_pairs, device=device))
        torch.autograd.backward([each.sum() for each in features if each.requires_grad])
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
