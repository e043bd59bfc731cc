"""The engine with every tensor on CUDA and no GPU, in a process of its own, since much of torch is replaced.

Tensors have a device, a type and a shape, but no data (torch's FakeTensorMode). One process plays rank 0 of
four: collectives send nothing, but each must get contiguous CUDA tensors, as NCCL requires. It sees one GPU and is not
the first process of its machine, as under `srun --gpus-per-task=1`. Streams, events and memory counters, which need a
driver, do nothing. Autograd cannot run backward without a device, so gradients are put where it would put them.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diptych.model import text_tower
from diptych.model.dual_encoder import DualEncoder
from diptych.model.packed_captions import PackedCaptions, has_varlen_kernel
from diptych.training.engine import Engine
from diptych.world import World
from tests.training.tiny import PAIRS, VOCABULARY, global_batches, rows_of, tiny_config

RANKS = 4
GPU = torch.device("cuda", 0)


class NoStream:
    """A stream or an event that does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def __enter__(self) -> NoStream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class NoGpu(CUDA_Accelerator):
    """DeepSpeed's CUDA accelerator, whose answers need no driver."""

    Stream = Event = NoStream  # type: ignore[assignment]

    def is_available(self) -> bool:
        return True

    def is_bf16_supported(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return str(GPU)

    def set_device(self, device_index: Any) -> None:
        assert torch.device(device_index) == GPU, f"this process sees one GPU, not {device_index}"

    def synchronize(self, device_index: Any = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def current_stream(self, device_index: Any = None) -> Any:
        return NoStream()

    default_stream = current_stream

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def total_memory(self, device_index: Any = None) -> int:
        return 80 * 2**30

    available_memory = total_memory

    def memory_allocated(self, device_index: Any = None) -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    def memory_stats(self, device_index: Any = None) -> Any:
        return defaultdict(int)

    def pin_memory(self, tensor: Any, align_bytes: int = 1) -> Any:
        return tensor

    def reset_peak_memory_stats(self, device_index: Any = None) -> None:
        pass


class Observer(TorchDispatchMode):
    """Refuses collectives that NCCL would refuse, counts the others, and returns a number when one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[str(function)] += 1
        if function.namespace == "c10d":
            return self._collective(function, args)
        if function is torch.ops.aten._local_scalar_dense.default:
            return {torch.bool: False}.get(args[0].dtype, 1 if not args[0].is_floating_point() else 0.5)
        if function is torch.ops.aten.equal.default:
            return True
        return function(*args, **(kwargs or {}))

    def _collective(self, function: Any, args: Any) -> Any:
        name = function.__name__.partition(".")[0]
        self.collectives[name] += 1
        for tensor in tree_leaves(args):
            if isinstance(tensor, Tensor) and name != "barrier":  # which passes a dummy tensor
                assert tensor.device == GPU, f"{name} of a tensor on {tensor.device}"
                assert tensor.is_contiguous(), f"{name} of a tensor with strides {tensor.stride()}"
        work = FakeWork().boxed()
        return (args[0], work) if len(function._schema.returns) == 2 else work


class Unpinned(TorchFunctionMode):
    """Replaces pinned memory, which needs a driver."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **{name: value for name, value in (kwargs or {}).items() if name != "pin_memory"})


def without_driver() -> None:
    """Replace functions that ask a driver first, although they do not need one."""
    deepspeed.accelerator.set_accelerator(NoGpu())
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    torch.cuda.is_bf16_supported = lambda *_, **__: True  # type: ignore[assignment]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.Event = NoStream  # type: ignore[assignment, misc]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign, assignment]
    nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    F.scaled_dot_product_attention = flash_attention
    text_tower.PackedCaptions = PackedOnHost  # type: ignore[misc]
    for module in (deepspeed.runtime.zero.stage_1_and_2, deepspeed.runtime.zero.stage3):
        module.count_used_parameters_in_backward = len  # autograd knows it only during a backward
    # These compare data over ranks, and there is none.
    for module in (deepspeed.runtime.zero.utils, deepspeed.runtime.zero.partitioned_param_coordinator):
        module.assert_ints_same_as_other_ranks = lambda *_: None


def flash_attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, **_: Any) -> Tensor:
    """The kernel that CUDA chooses for bf16, as autocast passes it; torch would ask the device whether it can."""
    query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]


class PackedOnHost(PackedCaptions):
    """Computes with data on the host, as usual, then moves to CUDA, where there is no data."""

    lengths: ClassVar[Iterator[Tensor]]
    """Takes the parts in turn, since those that arrive may have lost their data in a hook of DeepSpeed's."""

    @staticmethod
    def of(lengths: Tensor, padded_length: int, device: torch.device) -> PackedCaptions:
        assert lengths.device.type == "cpu", "to read them would wait for the device"
        with unset_fake_temporarily():
            host = PackedCaptions.of(next(PackedOnHost.lengths), padded_length, torch.device("cpu"))
        moved = {name: getattr(host, name).to(device) for name in ("places", "positions", "ends", "bounds")}
        return replace(host, **moved, has_varlen_kernel=has_varlen_kernel(device))


def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """Replaces `Tensor.backward`: give each leaf of the graph a gradient, and call the hooks that wait for it."""
    assert loss.device == GPU and loss.dtype == torch.float32, loss
    for leaf in leaves(loss.grad_fn):
        whole = getattr(leaf, "ds_shape", leaf.shape)
        if leaf.shape != whole:
            leaf.data = torch.zeros(whole, device=GPU)  # as ZeRO-3 would have gathered it again
        leaf.grad = torch.zeros(whole, device=GPU)
        for hook in list((leaf._post_accumulate_grad_hooks or {}).values()):
            hook(leaf)


def leaves(node: Any) -> list[Any]:
    """The leaves for which the graph below this node computes gradients."""
    found, seen, todo = [], set(), [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [below for below, _ in node.next_functions]
    return found


def main(stage: int, precision: str, num_parts: int, offloads: bool, report: str) -> None:
    """Take a step, save, restore and take another, then write what is where to a JSON file."""
    os.environ.update(DS_ACCELERATOR="cuda", RANK="0", WORLD_SIZE=str(RANKS), LOCAL_RANK="1")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    without_driver()
    config = tiny_config(stage=stage, precision=precision, ema_decay=0.9)
    machine = replace(
        config.machine,
        pairs_per_forward=PAIRS // RANKS // num_parts,
        checkpoint_blocks=num_parts > 1,
        offload_optimizer=offloads,
    )
    config = replace(config, loss=replace(config.loss, duplicates="positives"), machine=machine)
    world = World(0, 1, RANKS, GPU)
    batch = rows_of(global_batches(1)[0], world.rows(PAIRS))
    PackedOnHost.lengths = itertools.cycle([part.lengths for part in batch.parts(num_parts)])
    with FakeTensorMode(allow_non_fake_inputs=True), Observer() as seen, Unpinned():
        with GPU:
            model = DualEncoder(config.model, VOCABULARY, config.training.initial_logit_scale)
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        engine = Engine(model, config, world)
        engine.step(batch, 0, tallies=(1, 2), measures_update=True).read()
        state = engine.optimizer_state()
        weights = engine.weights()
        averages = engine.weights(averaged=True)
        share = list(engine.share().tensors())
        engine.restore_optimizer(state)
        engine.restore_average(averages)
        engine.step(batch, PAIRS)
    saved = [*weights.values(), *averages.values(), *state.moments["exp_avg"].values()]
    moments = [tensor for each in engine._torch_optimizer().state.values() for tensor in each.values()]
    Path(report).write_text(
        json.dumps(
            {
                "parameters": sorted({str(parameter.device) for parameter in model.parameters()}),
                "moments": sorted({str(tensor.device) for tensor in moments}),
                "share": sorted({str(tensor.device) for tensor in share}),
                "saved": sorted({str(tensor.device) for tensor in saved}),
                "has_all_weights": sorted(weights) == sorted(model.state_dict()),
                "collectives": seen.collectives,
                "varlen_attentions": seen.operations["torch_attn._varlen_attn.default"],
            }
        )
    )
