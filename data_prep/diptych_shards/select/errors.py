"""What a user of these commands can get wrong."""


class SelectError(ValueError):
    """A verdict, an expression or an option does not fit the shards."""
