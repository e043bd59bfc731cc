"""wandb, opened in one way for training, evaluation and shard building.

What the caller asks for wins over the environment (`WANDB_…` and wandb's settings files), which wins over our defaults.
"""

from __future__ import annotations

import netrc
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diptych.errors import UserError
from diptych.terminal import printable

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""What WANDB_MODE may be → what it means."""
FALSE_WORDS = ("", "0", "n", "no", "f", "false", "off")
LONGEST_REASON = 120


def is_disabled(mode: str = "auto") -> bool:
    """Whether wandb is to be left out altogether; known without loading it."""
    if mode != "auto":
        return mode == "off"
    disabled = os.environ.get("WANDB_DISABLED", "").lower() not in FALSE_WORDS
    return disabled or os.environ.get("WANDB_MODE") == "disabled"


def is_silent() -> bool:
    """Whether the user wants no lines about wandb."""
    return os.environ.get("WANDB_SILENT", "").lower() not in FALSE_WORDS


def refuse_unknown_mode(mode: str = "auto") -> None:
    """Raise UserError if WANDB_MODE decides and is not a mode of wandb, which would then fail late."""
    said = os.environ.get("WANDB_MODE")
    if mode == "auto" and said and said not in MODES:
        raise UserError(f"WANDB_MODE is {said!r} in the environment; it must be online, offline or disabled")


def find_mode(mode: str = "auto", *, without_key: str = "offline") -> str:
    """`online`, `offline` or `disabled`: the caller's word, else the environment's, else whether there is a key."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]  # an empty value is how a script unsets one; wandb would refuse or use it
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb's failures go to its makers, offline too
    if is_disabled(mode):
        return "disabled"
    if mode != "auto":
        return mode
    known = _known_settings()
    if "mode" in known.model_fields_set:
        return MODES[known.mode]
    return "online" if _has_key(known) else without_key


def open_run(
    mode: str,
    *,
    wanted: Mapping[str, Any],
    defaults: Mapping[str, Any],
    command: Sequence[str],
    process: int | None = None,
    **keywords: Any,
) -> Any:
    """A wandb run.

    mode: `online` or `offline`, as `find_mode` gives it. wanted, defaults: names of `wandb.Settings` → values that win
    over the environment, or give way to it; None is not set. command: the user's, for the run's overview. process:
    whose system metrics are taken, with its children's (this process). keywords: for `wandb.init`.
    """
    import wandb

    known = _known_settings().model_fields_set
    given = {name: value for name, value in defaults.items() if name not in known and value is not None}
    given |= {name: value for name, value in wanted.items() if value is not None}
    if "root_dir" in given:
        Path(given["root_dir"]).mkdir(parents=True, exist_ok=True)
    sys.argv = [*command]  # wandb records the arguments of the process that calls it
    return wandb.init(
        mode="online" if mode == "online" else "offline",
        settings=wandb.Settings(
            **given,
            silent=True,
            console="off",
            program=command[0],
            x_stats_pid=process or os.getpid(),
            x_stats_track_process_tree=True,
        ),
        **keywords,
    )


def user_command() -> list[str]:
    """The command that the user called, as words; `python -m diptych` is `diptych`."""
    path = Path(sys.argv[0])
    name = path.parent.name.replace("_", "-") if path.name == "__main__.py" else path.name
    return [name, *sys.argv[1:]]


def is_offline(run: Any) -> bool:
    return bool(run.settings._offline)


def folder_of(run: Any) -> Path:
    """Where the run's files are."""
    return Path(run.dir).parent


def location(run: Any) -> str:
    """Where to look at the run, or what sends it there."""
    if is_offline(run):
        return f"offline; `wandb sync {shlex.quote(printable(str(folder_of(run))))}` sends it"
    return f"{run.url}"


def reason(error: Exception) -> str:
    """What is wrong, in one short line: a server's answer may be a whole HTML page."""
    lines = re.split(r"\s*[<{]", str(error))[0].strip().splitlines() or [type(error).__name__]
    return printable(lines[0], LONGEST_REASON).rstrip(" .:")


def _known_settings() -> Any:
    """What the environment and wandb's settings files say."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings  # wandb.setup() would start its service, which writes and connects


def _has_key(known: Any) -> bool:
    """Whether the environment holds a key for the server that is asked, or `wandb login` left one."""
    if known.api_key or known.identity_token_file:
        return True
    server = urlsplit(known.base_url).netloc
    for path in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            if path and server in netrc.netrc(path).hosts:  # not its `default`, which is for other things
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
