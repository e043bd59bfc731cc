"""Files that are not on this machine: whether they can be read, and what to say where that failed."""

from __future__ import annotations

import os
from typing import Any

from diptych.errors import UserError
from diptych.terminal import printable, shown

_WEB = ("http://", "https://")
_LONGEST_REASON = 300
"""Characters; one store answers a missing Java with a list of all places where it looked."""


def is_remote(location: str) -> bool:
    return "://" in location


def is_elsewhere(location: str) -> bool:
    """Whether a location is on another machine; `file:///x` is a path of this one."""
    return is_remote(location) and not location.lower().startswith("file:")


def is_web(location: str) -> bool:
    return location.startswith(_WEB)


def file_system(location: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it; endpoint and credentials are where fsspec finds them.

    Raises:
        UserError: no installed package reads such addresses, or its settings are wrong.
    """
    import fsspec  # imported here: local files need no fsspec

    if why := why_unreadable(location):
        raise UserError(f"{shown(location)}: {why}")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(location)
    except Exception as error:  # each file system has classes of its own
        raise UserError(f"{shown(location)} {what_failed(location, error)}") from error
    return found


def why_unreadable(location: str) -> str | None:
    """Say what to install, or what to name instead; None if such addresses can be read."""
    import fsspec

    scheme = location.partition("://")[0].rpartition("::")[2]
    # For zonal buckets gcsfs asks over gRPC what kind of bucket each is. Where that is not answered, each request waits
    # a minute for it; and gRPC does not survive the fork of a loader process.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None)
        # The package of a module may have another name, but fsspec knows it.
        return f"to read {scheme}://" + (f", pip install {package}" if str(package) in str(error) else f": {error}")
    except ValueError:
        return f"{scheme}:// cannot be read; name a path, or an address at http(s)://, s3://, gs:// or the like"
    return None


def what_failed(location: str, error: Exception) -> str:
    """Describe why a file could not be opened or read, in a line of bounded length that follows its name.

    Each store has its own errors. For http(s)://, fsspec reports every failure as a file that is not found.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and is_web(location) else None
    if is_missing(location, error):
        return "does not exist"
    if cause is None:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        return f"cannot be read: {kind}{one_line(why)}"
    status = getattr(cause, "status", None)
    if status is None:
        return f"cannot be read: the server could not be reached ({one_line(cause)})"
    return f"cannot be read: the server answers {status} {one_line(getattr(cause, 'message', ''))}".rstrip()


def is_missing(location: str, error: Exception) -> bool:
    """Whether the file certainly does not exist."""
    if not isinstance(error, FileNotFoundError):
        return False
    status = status_of(error)
    if status is None:
        return error.__cause__ is None or not is_web(location)
    return status in (404, 410)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error or its cause reports; None if it reports none."""
    for one in (error, error.__cause__):
        for holder, name in ((one, "status"), (getattr(one, "response", None), "status_code")):  # aiohttp, the Hub
            if isinstance(status := getattr(holder, name, None), int):
                return status
    # gcsfs. Causes that have a code are protocol errors of aiohttp, such as an answer that was cut off.
    if isinstance(code := getattr(error, "code", None), int):
        return code
    return 403 if str(error).startswith("Forbidden: ") else None


def one_line(why: object) -> str:
    return printable(str(why), _LONGEST_REASON)
