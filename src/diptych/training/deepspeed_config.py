"""Make DeepSpeed's configuration from the run's config and the user's own settings in `machine.deepspeed`."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from typing import Any

import deepspeed
from deepspeed.runtime.config import DeepSpeedConfig
from pydantic import ValidationError

from diptych.config.schema import RunConfig
from diptych.errors import UserError
from diptych.world import World

OWNED_DEEPSPEED_KEYS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.global_batch_size and the number of ranks",
    "gradient_accumulation_steps": "training.global_batch_size and the number of ranks",
    "gradient_clipping": "optimizer.gradient_clip_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "torch_autocast": "training.precision",
    "amp": "training.precision",
}


def deepspeed_config(config: RunConfig, num_ranks: int, *, spans_machines: bool = False) -> dict[str, Any]:
    """DeepSpeed's JSON: our settings, with the user's `machine.deepspeed` merged last.

    spans_machines: whether gradients travel between machines, over a slower network.

    Raises:
        ValueError: `machine.deepspeed` sets a key that the run's config decides, a key that DeepSpeed does not know, or
            a value that it refuses.
    """
    for key, ours in OWNED_DEEPSPEED_KEYS.items():
        if key in config.machine.deepspeed:
            raise UserError(f"machine.deepspeed sets {key}, which follows from {ours}; set that instead")
    zero = config.machine.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"machine.deepspeed.zero_optimization is {zero!r}; expected a mapping of its settings")
    if "stage" in zero:
        raise UserError("machine.deepspeed sets zero_optimization.stage; set machine.zero_stage instead")
    if offloads_optimizer(config) and config.optimizer.name == "muon":
        raise UserError(
            "machine.offload_optimizer: optimizer.name muon orthogonalises matrices, which takes the GPU; leave "
            "offload_optimizer out, or set optimizer.name to adamw"
        )
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": max(1, -(-config.training.global_batch_size // num_ranks)),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if clips_on_device(config, num_ranks) else config.optimizer.gradient_clip_norm or 0.0,
        "zero_optimization": {
            "stage": zero_stage(config, num_ranks),
            # False all-reduces each bucket; ZeRO's reduce-scatter slices it once for every rank, in Python.
            "reduce_scatter": False,
            # DeepSpeed's default of 5e8 is never full before the backward ends, and takes 2 GB when memory is fullest.
            "reduce_bucket_size": 50_000_000,
            # Reduces during the backward; costs a wait at its end and memory for a second bucket.
            "overlap_comm": spans_machines,
        },
        # The timer waits for the device twice a step.
        "timers": {"throughput": {"enabled": False}},
        # Use torch's AdamW; DeepSpeed's takes minutes to compile at the first start.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**40,
    }
    if config.machine.offload_optimizer:
        if not config.machine.zero_stage:
            raise UserError(
                "machine.offload_optimizer needs ZeRO, which moves the optimizer's share of each rank to the host; set "
                "machine.zero_stage to 1, 2 or 3, or leave offload_optimizer out"
            )
        generated["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if clips_on_device(config, num_ranks) and zero_stage(config, num_ranks):
        # The engine computes the norm itself, without waiting for the device.
        generated["zero_optimization"]["compute_grad_norm"] = False
    merged = _merged(generated, config.machine.deepspeed)
    _check_with_deepspeed(merged)
    return merged


def zero_stage(config: RunConfig, num_ranks: int) -> int:
    """The ZeRO stage that is used: 0 on a single rank, where ZeRO would only cost a second copy of the weights.

    Offloading, and ZeRO settings in `machine.deepspeed`, need the configured stage even on a single rank.
    """
    needs_zero = config.machine.offload_optimizer or "zero_optimization" in config.machine.deepspeed
    return 0 if num_ranks == 1 and not needs_zero else config.machine.zero_stage


def clips_on_device(config: RunConfig, num_ranks: int) -> bool:
    """Whether our engine clips the gradient; DeepSpeed does at stage 3 and when the optimizer is offloaded."""
    return zero_stage(config, num_ranks) < 3 and not offloads_optimizer(config)


def offloads_optimizer(config: RunConfig) -> bool:
    """Whether moments and master weights are kept in host memory."""
    by_expert = "offload_optimizer" in config.machine.deepspeed.get("zero_optimization", {})
    return config.machine.offload_optimizer or by_expert


def prepare_deepspeed(world: World) -> None:
    """Give DeepSpeed this rank's GPU, silence its output, and keep it from compiling its shared-memory collective.

    Compiling takes minutes, and leaves a stale lock when it is killed.
    """
    # DeepSpeed takes the GPU of this number, and needs the variable even without a launcher. A rank that sees only its
    # own GPU, as under `srun --gpus-per-task=1`, has number 0, wherever it is on its machine.
    os.environ["LOCAL_RANK"] = str(world.local_rank if world.device.index is None else world.device.index)
    # DeepSpeed 0.19 calls collectives by the names that torch 2.14 renames.
    warnings.filterwarnings("ignore", message="`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprec")
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # A table of our own, since DeepSpeed's begins with a probe of all its operations, by compilers and the driver.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _check_with_deepspeed(values: dict[str, Any]) -> None:
    """Let DeepSpeed check the values, and refuse sections that it never looks up.

    DeepSpeed refuses unknown keys inside its sections, but silently ignores unknown sections.
    """
    asked = _Asked(values)
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        what = "is not known to DeepSpeed" if problem["type"] == "extra_forbidden" else problem["msg"]
        raise UserError(f"machine.deepspeed: {error.title} {where} = {problem['input']!r}: {what}") from None
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"machine.deepspeed is refused by DeepSpeed: {error}") from None
    for key in values:
        if key not in asked.keys_asked:
            near = difflib.get_close_matches(key, asked.keys_asked, 1, 0.75)
            way_out = f"did you mean {near[0]}?" if near else "see its documentation of the configuration JSON"
            raise UserError(f"machine.deepspeed.{key} is not a key of DeepSpeed's; {way_out}")


class _Asked(dict[str, Any]):
    """A configuration that records which keys are looked up: DeepSpeed has no list of the keys that it knows."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self
