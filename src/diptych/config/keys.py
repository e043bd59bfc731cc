"""List the keys of a configuration, describe them, and guess which key an unknown word means."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from diptych.config.schema import RunConfig

OTHER_WORDS = {
    "checkpoint.every_samples": "checkpoint_every save_every save_every_steps save_freq save_frequency save_steps",
    "data.augmentation": "aug aug_cfg augment augmentations transform transforms",
    "data.colour_jitter": "color_jitter jitter",
    "data.colour_jitter.probability": "color_jitter_prob",
    "data.grey_probability": "gray gray_scale_prob grayscale grayscale_prob grey random_grayscale",
    "data.horizontal_flip_probability": "flip hflip horizontal_flip random_horizontal_flip",
    "data.random_erasing": "erasing random_erase",
    "data.random_erasing.max_rectangles": "re_count",
    "data.random_erasing.probability": "re_prob reprob",
    "data.random_resized_crop.ratio": "crop_ratio",
    "data.random_resized_crop.scale": "crop_scale",
    "data.train": "data_dir dataset shards train_data train_dir train_path train_shards",
    "initial_checkpoint": "branch_from from_checkpoint initial_state resume resume_from_checkpoint",
    "machine.compile_blocks": "compile torch_compile torchcompile",
    "machine.deterministic": "cudnn_deterministic use_deterministic_algorithms",
    "machine.gpu_memory_gib": "gpu_memory gpu_mem vram",
    "machine.loader_workers": "dataloader_num_workers loader_threads num_workers workers",
    "machine.offload_optimizer": "cpu_offload offload optimizer_offload",
    "machine.process_group_timeout_seconds": "ddp_timeout dist_timeout timeout",
    "machine.step_timeout_seconds": "hang_timeout heartbeat_timeout watchdog_timeout",
    "machine.stop_after": "max_hours max_runtime max_time time_limit walltime",
    "machine.zero_stage": "stage zero",
    "model.embed_dim": "dim embedding_dim embedding_size projection_dim",
    "model.image.fill_colour": "fill fill_color",
    "model.image.image_size": "img_size input_size res resolution size",
    "model.image.initial_weights": "pretrained_backbone pretrained_image",
    "model.image.interpolation": "image_interpolation resample",
    "model.image.name": "arch architecture backbone image_tower model_name vision_tower",
    "model.image.resize_mode": "image_resize_mode resize",
    "model.initial_weights": "checkpoint_path finetune finetune_from init pretrained resume_from weights",
    "model.text.context_length": "context max_length max_seq_len seq_len",
    "optimizer": "adam adamw optim",
    "optimizer.beta1": "adam_beta1 betas",
    "optimizer.beta2": "adam_beta2",
    "optimizer.epsilon": "adam_epsilon eps",
    "optimizer.gradient_clip_norm": "clip_grad clip_grad_norm clip_norm grad_clip grad_clip_norm max_grad_norm",
    "optimizer.learning_rate": "base_lr lr max_lr peak_lr",
    "optimizer.warmup_samples": "warmup warmup_epochs warmup_ratio warmup_steps",
    "optimizer.schedule": "lr_schedule lr_scheduler scheduler",
    "optimizer.cooldown_samples": "cooldown cooldown_epochs cooldown_steps decay_steps epochs_cooldown",
    "optimizer.name": "opt optimizer_type opt_name",
    "optimizer.moments": "moment_dtype optimizer_dtype optimizer_state_dtype state_dtype",
    "optimizer.weight_decay": "decay wd",
    "run_dir": "exp_dir experiment log_dir logs out out_dir output output_dir save_dir work_dir",
    "tokenizer.vocabulary": "bpe vocab vocab_file vocab_path",
    "tracking.log_every_steps": "log_every log_freq log_interval logging_steps",
    "tracking.wandb_project": "project",
    "training.ema_decay": "ema model_ema model_ema_decay moving_average",
    "training.global_batch_size": "batch batch_size bs per_device_train_batch_size train_batch_size",
    "training.initial_logit_scale": "logit_scale temperature",
    "training.precision": "amp bf16 dtype fp16 mixed_precision",
    "training.seed": "random_seed",
    "training.stages": "curriculum phases progressive_resizing",
    "training.total_samples": "epochs max_epochs max_steps num_epochs num_samples num_steps samples steps total_steps",
}
"""Key → what other trainers call it."""

UNIONS = (types.UnionType, typing.Union)
"""The types of `int | None`, and of a union that contains a Literal."""

WIDTH = 79
"""Columns of the output of `diptych train --keys`."""


def all_keys(part: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key and section with its dotted name, in the order of the schema."""
    for key, hint in typing.get_type_hints(part).items():
        yield f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            yield from all_keys(hint, f"{prefix}{key}.")


def item_schema(hint: Any) -> Any:
    """The dataclass of the items, if a value of this type may be a list of mappings; else None."""
    lists = [option for option in typing.get_args(hint) if typing.get_origin(option) is tuple]
    items = [typing.get_args(option)[0] for option in lists]
    return next((item for item in items if dataclasses.is_dataclass(item)), None)


def meant_by(word: str) -> str | None:
    """The key that an unknown one probably means; None if it resembles no key.

    It tries, in this order: a near spelling in the same section, the same name in another section or another trainer's
    name for a key, and a near spelling anywhere.
    """
    section, _, name = word.lower().replace("-", "_").rpartition(".")
    known = {key: [key.rpartition(".")[2], *OTHER_WORDS.get(key, "").split()] for key in all_keys()}
    siblings = {names[0]: key for key, names in known.items() if key.rpartition(".")[0] == section}
    for close in difflib.get_close_matches(name, siblings, 1, 0.6 if section else 0.75):
        return siblings[close]
    for key, names in known.items():
        if name in names:
            return key
    for close in difflib.get_close_matches(f"{section}.{name}", known, 1, 0.8):
        return close
    everywhere = {other: key for key, names in reversed(known.items()) for other in names}
    for close in difflib.get_close_matches(name, everywhere, 1, 0.75):
        return everywhere[close]
    return None


def did_you_mean(word: str) -> str | None:
    """`did you mean KEY?`, and that it counts samples if the unknown word did not say so; None without a guess."""
    key = meant_by(word)
    if key is None:
        return None
    return f"did you mean {key}?" + (" It counts samples." if "samples" in key and "samples" not in word else "")


def describe_keys() -> str:
    """All keys as a YAML file to start from, 80 columns wide, each with its default, its type and what it means."""
    heading = "# Every key of `diptych train`. Keys that are empty here have no default; other lines may be left out."
    return "\n".join([*_comment(heading, ""), "", *_described(RunConfig, "")])


def _described(part: Any, indent: str) -> Iterator[str]:
    hints, comments = typing.get_type_hints(part), _comments(part)
    for field in dataclasses.fields(part):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield ""
            yield from _comment(inspect.getdoc(hint) or "", indent)
            yield f"{indent}{field.name}:"
            yield from _described(hint, f"{indent}  ")
            continue
        yield from _comment(comments.get(field.name, ""), indent)
        line, kind = f"{indent}{field.name}: {_default(field)}".rstrip(), f"# {_kind(hint)}"
        if len(line) + len(kind) > WIDTH - 2:
            yield f"{indent}{kind}"
        yield line if len(line) + len(kind) > WIDTH - 2 else f"{line}  {kind}"


def _comments(part: Any) -> dict[str, str]:
    """Field → the docstring below it in the schema."""
    body = ast.parse(inspect.getsource(part)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text.removeprefix("# "), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return ""
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


def _kind(hint: Any) -> str:
    """A type in words, such as `number or null`."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, options))
    if typing.get_origin(hint) in UNIONS:
        return " or ".join("null" if option is type(None) else _kind(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"list of {_kind(options[0])}" if options[-1] is ... else f"{len(options)} {_kind(options[0])}s"
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "true | false"}[hint]
