"""What a user of these commands can get wrong."""

from diptych.errors import UserError


class SelectError(UserError):
    """A verdict, an expression or an option does not fit the shards."""
