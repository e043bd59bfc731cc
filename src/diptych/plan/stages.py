"""Count the operations of a run in stages."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.config.schema import RunConfig
from diptych.config.stages import stages_of
from diptych.model.flops import TrainingFlops
from diptych.terminal import counted


def describe_operations(config: RunConfig, vocab_size: int) -> Iterator[str]:
    """Yield a line for each stage, and one for the whole run, with captions that fill the context."""
    size = config.training.global_batch_size
    whole = 0
    for stage in stages_of(config):
        flops = TrainingFlops(stage.model, vocab_size, config.loss)
        of_pair, samples = flops.of_pair(stage.model.text.context_length), len(stage.batches) * size
        whole += of_pair * samples
        yield f"{stage}; {counted(samples, 'sample')} of {of_pair / 1e9:,.4g} GFLOPs, {_large(of_pair * samples)}"
    flops = TrainingFlops(config.model, vocab_size, config.loss)
    of_model = flops.of_pair(config.model.text.context_length) * (config.training.total_samples // size * size)
    yield f"all stages: {_large(whole)}, {whole / of_model:.0%} of a run without stages"


def _large(flops: float) -> str:
    """With three digits: `5.2 PFLOPs`."""
    unit, name = next(each for each in _UNITS if flops >= 0.9995 * each[0] or each == _UNITS[-1])
    return f"{flops / unit:.3g} {name}FLOPs"


_UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))
