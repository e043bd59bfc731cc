"""The towers' blocks through `torch.compile`, one by one: fewer and larger kernels, and less kept for the backward.

By blocks rather than whole, so that DeepSpeed can reduce the gradients of one while the backward of the next runs, so
that equal blocks are compiled once, and so that no name of a parameter changes.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from diptych.errors import UserError
from diptych.model.dual_encoder import DualEncoder
from diptych.model.image_tower import blocks_of
from diptych.model.packed_captions import PackedCaptions
from diptych.model.text_tower import CausalAttention
from diptych.world import World, on_any_rank

logger = logging.getLogger(__name__)

MOST_VARIANTS = 64
"""Of one block's code, before torch runs further ones uncompiled: depths may differ in their drop rates, say."""


def image_blocks(model: DualEncoder) -> list[nn.Module]:
    """Those of the image tower.

    Raises:
        UserError: there are none.
    """
    innermost = blocks_of(model.image.trunk)
    if not innermost:
        raise UserError(
            f"machine.compile_blocks: the image tower ({type(model.image.trunk).__name__}) has no blocks that are "
            f"known by name; leave it out"
        )
    return innermost


def compile_blocks(model: DualEncoder, towers: nn.Module, num_pairs: int, world: World) -> None:
    """Compile the blocks of both towers, or leave them as they are and say why; every rank must call it.

    It is tried at once, by a forward and a backward of `towers` of as many pairs as training takes through them: what
    is compiled then is what training uses, and a failure later could not be taken back. DeepSpeed must not have the
    model yet.
    """
    # Imported with everything else it would cost each command two seconds.
    import torch._dynamo
    import torch._inductor.config

    # Layers that draw masks draw those of uncompiled ones, also where a part goes through them twice.
    torch._inductor.config.fallback_random = True
    if hasattr(torch._inductor.config, "deterministic"):  # since torch 2.10
        # Else kernels are chosen by their speed, and sums by their kernel.
        torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    images, texts = image_blocks(model), list(model.text.transformer.resblocks)
    for block in images:
        # Pictures come in batches of one size, perhaps two; each is then always the same code, also after a restart.
        block.compile(dynamic=False)
    for block in texts:
        # The tokens of a batch are never as many as before, nor the groups of captions of equal length.
        block.compile(dynamic=True)
    for module in model.text.modules():
        if isinstance(module, CausalAttention):
            module.attend = torch.compiler.disable(PackedCaptions.attend)
    fault = None
    try:
        _try(model, towers, num_pairs)
    except Exception as error:  # a compiler may fail in any way
        fault = f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]
    if on_any_rank(world, fault is not None):
        for block in (*images, *texts):
            block._compiled_call_impl = None
        logger.warning(
            "machine.compile_blocks: the blocks run uncompiled, since torch.compile failed (%s)",
            fault or "on another rank",
        )


def _try(model: DualEncoder, towers: nn.Module, num_pairs: int) -> None:
    """One forward and one backward, that leave nothing behind."""
    device, size, length = model.logit_scale.device, model.image.image_size, model.text.context_length
    images = torch.zeros(num_pairs, 3, size, size, dtype=torch.uint8, device=device)
    tokens = torch.zeros(num_pairs, length, dtype=torch.int32, device=device)
    lengths = torch.arange(num_pairs) % length + 1
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        features: tuple[Tensor, ...] = towers(images, tokens, lengths, torch.arange(num_pairs, device=device))
        torch.autograd.backward([each.sum() for each in features])
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
