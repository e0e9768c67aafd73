"""Errors a user can act on: one line that says what was given, what was expected, and what to do.

The command line prints the line alone and exits with `exit_code`; a traceback is shown only with `--debug`.
"""


class AlmError(Exception):
    """Something failed while working: exit code 1."""

    exit_code = 1


class UsageError(AlmError):
    """The command line was used wrongly: exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A config holds a wrong name, type or combination: exit code 2."""


class AudioError(AlmError):
    """An audio file cannot be used; the message names the file."""


class DataError(AlmError):
    """A row or data set cannot be used; the message names the file and row."""


class CheckpointError(AlmError):
    """A checkpoint cannot be read or does not fit; the message lists all offenders."""


class EndpointError(AlmError):
    """A language model's endpoint refuses, or does not answer however often it is asked."""
