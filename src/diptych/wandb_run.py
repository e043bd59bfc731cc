"""Open a wandb run, the same way for training, evaluation and shard building.

The caller's settings override the environment (`WANDB_…` and wandb's settings files), which overrides our defaults.
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
"""Value of WANDB_MODE → what it means."""
FALSE_WORDS = ("", "0", "n", "no", "f", "false", "off")
LONGEST_REASON = 120


def is_disabled(mode: str = "auto") -> bool:
    """Whether wandb is switched off; does not import it."""
    if mode != "auto":
        return mode == "off"
    disabled = os.environ.get("WANDB_DISABLED", "").lower() not in FALSE_WORDS
    return disabled or os.environ.get("WANDB_MODE") == "disabled"


def is_silent() -> bool:
    """Whether WANDB_SILENT asks for no output about wandb."""
    return os.environ.get("WANDB_SILENT", "").lower() not in FALSE_WORDS


def refuse_unknown_mode(mode: str = "auto") -> None:
    """Raise UserError if the mode comes from WANDB_MODE and wandb does not know it, since wandb would fail late."""
    said = os.environ.get("WANDB_MODE")
    if mode == "auto" and said and said not in MODES:
        raise UserError(f"WANDB_MODE is {said!r} in the environment; it must be online, offline or disabled")


def find_mode(mode: str = "auto", *, without_key: str = "offline") -> str:
    """`online`, `offline` or `disabled`.

    The caller's mode counts first, then the environment's. Without either it is `online` if there is an API key, else
    `without_key`.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]  # scripts unset a variable by making it empty; wandb would refuse the value or use it
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb sends its failures to its makers, offline too
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
    """Start a wandb run, or continue one.

    mode: `online` or `offline`, as `find_mode` gives it.
    wanted: name in `wandb.Settings` → value that overrides the environment; None leaves it unset.
    defaults: the same, where the environment overrides the value.
    command: what the user typed, for the run's overview.
    process: the process whose system metrics are recorded, with those of its children; by default this one.
    keywords: passed to `wandb.init`.
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
    """The command that the user typed, as a list of words; `python -m diptych` becomes `diptych`."""
    path = Path(sys.argv[0])
    name = path.parent.name.replace("_", "-") if path.name == "__main__.py" else path.name
    return [name, *sys.argv[1:]]


def is_offline(run: Any) -> bool:
    return bool(run.settings._offline)


def folder_of(run: Any) -> Path:
    """The folder with the run's files."""
    return Path(run.dir).parent


def location(run: Any) -> str:
    """The URL of the run, or the command that uploads it if it is offline."""
    if is_offline(run):
        return f"offline; `wandb sync {shlex.quote(printable(str(folder_of(run))))}` sends it"
    return f"{run.url}"


def reason(error: Exception) -> str:
    """The error in one short line; a server's answer may be a whole HTML page."""
    lines = re.split(r"\s*[<{]", str(error))[0].strip().splitlines() or [type(error).__name__]
    return printable(lines[0], LONGEST_REASON).rstrip(" .:")


def _known_settings() -> Any:
    """The settings from the environment and wandb's settings files."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings  # wandb.setup() would start its service, which writes and connects


def _has_key(known: Any) -> bool:
    """Whether there is an API key for the server, in the environment or saved by `wandb login`."""
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
