"""The one error that a user is meant to read."""

__all__ = ["OodbenchError"]


class OodbenchError(Exception):
    """Says in one sentence what is wrong and what to do; the command line prints it and exits with code 2."""
