"""The mistakes that a person can mend, told apart from bugs by their type."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of whoever called: in their words, their files or their machine.

    The message is a line for each mistake, with the value and the way out. Commands print it and exit with status 2;
    every other ValueError is a bug and keeps its traceback.
    """


class OneRankError(UserError):
    """What happens to one rank of many, such as a full memory. The other ranks do not know it, so this one says it."""


class LostRankError(UserError):
    """Another rank has ended or does not answer. It, or its launcher, knows why: no mistake, the exit status is 1."""
