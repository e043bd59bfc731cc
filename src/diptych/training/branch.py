"""Branch a run from a checkpoint of another one, the trunk, with its optimizer state and its position in the data.

With the schedules wsd and rsqrt a trunk without a cool-down serves runs of many lengths: each branches from one of its
checkpoints and cools down from there.
"""

from __future__ import annotations

from pathlib import Path

from diptych.checkpoint_folder import MANIFEST, checkpoints, has_manifest, verify
from diptych.config.load import ConfigError, config_from_dict
from diptych.config.schema import RunConfig
from diptych.config.values import differing_keys
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.files import local_path
from diptych.run_dir import FREE_KEYS, RunDir
from diptych.terminal import counted
from diptych.training.checkpoint import read_progress

CONFIG_FILE = "config.json"
FREE_IN_A_BRANCH = (
    *FREE_KEYS,
    *("initial_checkpoint", "model.initial_weights", "model.image.initial_weights"),
    *("optimizer", "training.total_samples", "training.stages"),
)
"""Keys and sections that a branch may set to other values than its trunk."""
BOUND = ("optimizer.name",)
"""Keys in free sections that are not free: the state of one optimizer is of no use to the other."""


def check_initial_checkpoint(config: RunConfig) -> None:
    """Check that `initial_checkpoint` can be gone on from with this configuration.

    Raises:
        ConfigError, UserError: it is no checkpoint or damaged; other weights to start from are named too; a setting
            that its state depends on differs (one line for all); or the run would end before it.
    """
    if config.initial_checkpoint is None or checkpoints(RunDir(Path(config.run_dir)).checkpoints):
        return
    place = place_of(config.initial_checkpoint)
    trunk = config_of_checkpoint(place)
    for key, others, theirs in (
        ("model.initial_weights", config.model.initial_weights, trunk.model.initial_weights),
        ("model.image.initial_weights", config.model.image.initial_weights, trunk.model.image.initial_weights),
    ):
        if others not in (None, theirs):
            raise ConfigError(
                f"initial_checkpoint {place} and {key} {others} both name the weights to start from; leave one of them "
                f"out"
            )
    differing = [
        f"{key} (there {old!r}, here {new!r})"
        for key, old, new in differing_keys(trunk, config)
        if key in BOUND or not {key, key.partition(".")[0]} & {*FREE_IN_A_BRANCH}
        if (key, new) != ("training.precision", "auto")
    ]
    if trunk.data.mixing != config.data.mixing:
        differing.append("weights or captions of data.train")
    if differing:
        raise ConfigError(
            f"initial_checkpoint {place}: its state does not fit these settings: {', '.join(differing)}; set them as "
            f"there, or start from its weights alone with model.initial_weights"
        )
    seen = read_progress(place).samples_seen
    if config.training.total_samples // config.training.global_batch_size * config.training.global_batch_size <= seen:
        raise ConfigError(
            f"initial_checkpoint {place} has seen {counted(seen, 'sample')}, and training.total_samples is "
            f"{config.training.total_samples}, where the branch would end; set it higher"
        )
    verify(place)


def begins_in_its_cooldown(config: RunConfig) -> str | None:
    """A note that the cool-down of this branch would have begun before its checkpoint; None if it does not."""
    if config.initial_checkpoint is None or checkpoints(RunDir(Path(config.run_dir)).checkpoints):
        return None
    cooldown, total = config.optimizer.cooldown_samples, config.training.total_samples
    seen = read_progress(place_of(config.initial_checkpoint)).samples_seen
    if not cooldown or seen <= total - cooldown:
        return None
    return (
        f"initial_checkpoint {config.initial_checkpoint} has seen {counted(seen, 'sample')}, and the cool-down would "
        f"have begun after {total - cooldown:,}, so the learning rate jumps to where it would be by now; set "
        f"optimizer.cooldown_samples to {total - seen} or less, or training.total_samples to {seen + cooldown} or more"
    )


def place_of(named: str) -> Path:
    """The folder of the checkpoint.

    Raises:
        UserError: it is none.
    """
    path = local_path(named)
    if not has_manifest(path) or not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"initial_checkpoint {named} is not a checkpoint (it has no {MANIFEST}); name one, such as "
            f"runs/my/checkpoints/step_00001000"
        )
    return path


def config_of_checkpoint(checkpoint: Path) -> RunConfig:
    """The configuration of the run that saved a checkpoint."""
    return config_from_dict(parse_json((checkpoint / CONFIG_FILE).read_text(encoding="utf-8")))
