"""Compare a whole training step of ViT-B/32 with open_clip's: same weights, same batch; prints one line of JSON.

A step is forward, loss, backward and AdamW (torch's fused AdamW on both sides), in one thread. Ours uses the engine of
`diptych train`; the peer's uses open_clip's model and loss as its training loop calls them. The peer gets normalised
pictures; ours normalises them in the step. Captions have lengths like alt texts: the logarithm of their number of
tokens is normally distributed, with a mean of about 20 tokens. The two sides run alternately, each in a process of its
own, and then once more both in one process, alternating step by step. Times are processor times. Last, the peak memory
of a step over eight times as many pairs, which go through the towers in parts, is compared with that of one part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ["DS_ACCELERATOR"] = "cpu"  # read while DeepSpeed is imported

import numpy as np
import open_clip
import torch
from benchmarks.loss import peak_mebibytes
from torch.nn.attention import SDPBackend, sdpa_kernel

from diptych.config.schema import DataConfig, MachineConfig, OptimizerConfig, RunConfig, TrainingConfig
from diptych.data.batch import Batch
from diptych.model.dual_encoder import DualEncoder, load_weights
from diptych.model.open_clip_layout import from_open_clip
from diptych.process_group import process_group
from diptych.training.engine import Engine
from diptych.training.optimizer import learning_rate_at
from diptych.training.parameter_groups import parameter_groups
from diptych.world import World

PEER = "ViT-B-32-quickgelu"
PAIRS = 16
ROUNDS = 3
STEPS, STEPS_TOGETHER = 1, 2
"""Number of measured steps in a process of one side, and of both sides, after one step of warm-up."""
CONTEXT, VOCABULARY = 77, 49408
MEDIAN_TOKENS, SPREAD = 17.5, 0.5
PARTS, PAIRS_OF_A_PART = 8, 8
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "PRECISION"), help="one side, in this process")
    parser.add_argument("--together", metavar="PRECISION", help="both sides, in this process")
    parser.add_argument("--memory", type=int, metavar="PARTS", help="peak memory of ours, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
    elif arguments.together:
        print(json.dumps(measure_together(arguments.together)))
    elif arguments.memory:
        print(json.dumps(measure_memory(arguments.memory)))
    else:
        print(json.dumps(compare()))


def compare() -> dict[str, object]:
    result: dict[str, object] = {"benchmark": "step"}
    for precision in PRECISIONS:
        rounds = []
        for number in range(ROUNDS):
            sides = ("ours", "peer") if number % 2 else ("peer", "ours")
            rounds.append({side: start("--measure", side, precision) for side in sides})
        together = start("--together", precision)
        ratios = [each["peer"]["seconds"] / each["ours"]["seconds"] for each in rounds]
        result[f"speedup_{precision}"] = round(statistics.median(ratios), 2)
        result[f"speedup_{precision}_rounds"] = [round(ratio, 2) for ratio in ratios]
        result[f"speedup_{precision}_one_process"] = round(together["peer"]["seconds"] / together["ours"]["seconds"], 2)
        for side in ("ours", "peer"):
            seconds = statistics.median(each[side]["seconds"] for each in rounds)
            result[f"{side}_{precision}_pairs_per_second"] = round(PAIRS / seconds, 2)
        losses = (rounds[0][side]["losses"] for side in ("ours", "peer"))
        difference = max(abs(ours - peers) for ours, peers in zip(*losses, strict=True))
        result["loss_difference" if precision == "fp32" else f"loss_difference_{precision}"] = difference
    once, in_parts = start("--memory", "1"), start("--memory", str(PARTS))
    result["memory_ratio"] = round(in_parts["mebibytes"] / once["mebibytes"], 3)
    result["memory_ratio_beyond_the_model"] = round(in_parts["beyond_the_model"] / once["beyond_the_model"], 3)
    result[f"mebibytes_{PAIRS_OF_A_PART}_pairs"] = once["mebibytes"]
    result[f"mebibytes_{PARTS * PAIRS_OF_A_PART}_pairs"] = in_parts["mebibytes"]
    result["settings"] = {
        "pairs": PAIRS,
        "tokens_a_caption": tokens_a_caption(),
        "threads": 1,
        "rounds": ROUNDS,
        "steps_a_process": STEPS,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
    }
    return result


def start(*words: str) -> dict:
    """Run this benchmark with other arguments in a process with one thread, and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.step", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, precision: str) -> dict[str, object]:
    """Measure the processor seconds of a step, and record the loss of each step."""
    with alone():
        step = {"ours": our_step, "peer": peer_step}[side](precision)
        losses, seconds = [step(0)], []
        for number in range(1, 1 + STEPS):
            seconds.append(timed(lambda number=number: losses.append(step(number))))
    return {"seconds": statistics.median(seconds), "losses": losses}


def measure_together(precision: str) -> dict[str, dict[str, float]]:
    with alone():
        steps = {"ours": our_step(precision), "peer": peer_step(precision)}
        seconds: dict[str, list[float]] = {side: [] for side in steps}
        for number in range(1 + STEPS_TOGETHER):
            for side, step in steps.items():
                seconds[side].append(timed(lambda step=step, number=number: step(number)))
    return {side: {"seconds": statistics.median(each[1:])} for side, each in seconds.items()}


def measure_memory(num_parts: int) -> dict[str, float]:
    """Measure the peak memory of a step in MiB: of the whole process, and in addition to what it used before."""
    pairs = num_parts * PAIRS_OF_A_PART
    with alone():
        step = our_step("fp32", pairs, PAIRS_OF_A_PART)
        before = peak_mebibytes(reset=True)
        step(0)
        peak = peak_mebibytes()
    return {"mebibytes": round(peak, 1), "beyond_the_model": round(peak - before, 1)}


@contextmanager
def alone() -> Iterator[None]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with process_group(World(), timeout_seconds=60):
        yield


def timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


Step = Callable[[int], float]
"""Number of the step → its loss."""


def our_step(precision: str, pairs: int = PAIRS, pairs_per_forward: int | None = None) -> Step:
    config = run_config(precision, pairs, pairs_per_forward)
    model = DualEncoder(config.model, VOCABULARY, config.training.initial_logit_scale)
    load_weights(model, from_open_clip(peer_model().state_dict(), config.model))
    engine, batch = Engine(model, config, World()), make_batch(pairs)
    return lambda number: engine.step(batch, number * pairs).read().loss


def peer_step(precision: str) -> Step:
    config, model, loss_of = run_config(precision), peer_model(), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer),
        lr=0.0,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
        fused=True,
    )
    batch = make_batch(PAIRS)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (config.model.image.mean, config.model.image.std))
    images, tokens = (batch.images / 255 - mean) / std, batch.tokens.long()

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")

    def step(number: int) -> float:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(number * PAIRS, PAIRS, config.training.total_samples, config.optimizer)
        optimizer.zero_grad()
        # Let torch choose the attention kernel, even if our engine has chosen one for this process.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]), autocast:
            loss = loss_of(*model(images, tokens))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, config.training.max_logit_scale)
        return loss.item()

    return step


def run_config(precision: str, pairs: int = PAIRS, pairs_per_forward: int | None = None) -> RunConfig:
    """The config of ViT-B/32 with QuickGELU, which is the default model."""
    return RunConfig(
        run_dir="",
        data=DataConfig(train=""),
        training=TrainingConfig(total_samples=1000 * pairs, global_batch_size=pairs, precision=precision),
        optimizer=OptimizerConfig(warmup_samples=100 * pairs, gradient_clip_norm=None),
        machine=MachineConfig(pairs_per_forward=pairs_per_forward),
    )


def peer_model() -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.create_model(PEER)


def make_batch(pairs: int) -> Batch:
    """A batch of noise pictures, and captions of `<start>`, random tokens and `<end>`, padded with zeros."""
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (pairs, 3, 224, 224), dtype=np.uint8))
    lengths = np.clip(np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, pairs)).round(), 3, CONTEXT).astype(np.int32)
    tokens = random.integers(1, VOCABULARY - 2, (pairs, CONTEXT), dtype=np.int32)
    tokens[:, 0], tokens[np.arange(pairs), lengths - 1] = VOCABULARY - 2, VOCABULARY - 1
    tokens[np.arange(CONTEXT) >= lengths[:, None]] = 0
    return Batch(images, torch.from_numpy(tokens), torch.from_numpy(lengths), np.arange(pairs))


def tokens_a_caption() -> float:
    return round(float(make_batch(PAIRS).lengths.float().mean()), 1)


if __name__ == "__main__":
    main()
