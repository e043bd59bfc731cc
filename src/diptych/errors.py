"""Errors that a user can fix; every other exception is a bug."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: in the arguments, the files or the machine.

    The message has one line for each mistake, with the value and the way out. Commands print it and exit with status 2;
    any other ValueError is a bug and keeps its traceback.
    """


class OneRankError(UserError):
    """An error of this rank alone, such as full memory; it prints the message, since the other ranks do not know it."""


class TransientError(UserError):
    """A fault that the next start may not meet, such as a killed process: status 1, after which launchers restart."""


class LostRankError(TransientError):
    """Another rank ended or does not answer, and reports the reason itself."""


class NoMeetingError(UserError):
    """The ranks do not meet: those that wait all know it, so that only few of them report it."""
