"""What is wrong with a configuration: a message, and the keys that it is about."""

from __future__ import annotations

from collections.abc import Sequence

Keys = str | tuple[str, ...]
Problem = tuple[Keys, str]
"""The key, or all keys that contradict one another, and the message."""


def each_key(keys: Keys) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys


def concerns(keys: Keys, bad: Sequence[str]) -> bool:
    """Whether one of the keys, the mapping that contains it or a key inside it is known to be bad."""
    pairs = ((key, other) for key in each_key(keys) for other in bad)
    return any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for key, other in pairs)
