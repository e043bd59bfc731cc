"""Errors that a user can fix; every other exception is a bug."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: in the arguments, the files or the machine.

    The message has one line for each mistake, with the value and the way out. Commands print it and exit with status 2;
    any other ValueError is a bug and keeps its traceback.
    """


class OneRankError(UserError):
    """An error of this rank alone, such as full memory; it prints the message, since the other ranks do not know it."""


class LostRankError(UserError):
    """Another rank ended or does not answer, and reports the reason itself; this rank exits with status 1, not 2."""


class NoMeetingError(UserError):
    """The ranks do not meet: those that wait all know it, so that only few of them report it."""
