"""Count the operations of a run in stages."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.config.schema import LossConfig, ModelConfig, RunConfig
from diptych.config.stages import stages_of
from diptych.model.flops import TrainingFlops
from diptych.terminal import counted


def describe_operations(config: RunConfig, vocab_size: int) -> Iterator[str]:
    """Yield a line for each stage, and one for the whole run, with captions that fill the context."""
    size, stages = config.training.global_batch_size, stages_of(config)
    of_pairs = [_of_pair(stage.model, vocab_size, config.loss) for stage in stages]
    samples = [len(stage.batches) * size for stage in stages]
    whole = sum(of_pair * number for of_pair, number in zip(of_pairs, samples, strict=True))
    for stage, of_pair, number in zip(stages, of_pairs, samples, strict=True):
        of_stage = of_pair * number
        share = f"{flops_text(of_stage)} ({of_stage / whole:.0%})"
        yield f"{stage}; {counted(number, 'sample')} of {of_pair / 1e9:,.4g} GFLOPs, {share}"
    without = _of_pair(config.model, vocab_size, config.loss) * sum(samples)
    yield f"all stages: {flops_text(whole)}, {whole / without:.0%} of those of the same samples without stages"


def flops_text(flops: float) -> str:
    """With three digits: `5.2 PFLOPs`."""
    unit, name = next(each for each in _UNITS if flops >= 0.9995 * each[0] or each == _UNITS[-1])
    return f"{flops / unit:.3g} {name}FLOPs"


def _of_pair(model: ModelConfig, vocab_size: int, loss: LossConfig) -> int:
    return TrainingFlops(model, vocab_size, loss).of_pair(model.text.context_length)


_UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))
