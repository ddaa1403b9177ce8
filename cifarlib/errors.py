"""Errors that a user can fix: one sentence each, which says what is wrong, where, and what to do.

The command line prints the sentence and exits with code 2; every error survives pickling,
because it may cross the border between a worker process and the sweep.
"""


class CifarlibError(Exception):
    """Root of all errors that a user can fix."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(CifarlibError):
    """A study, a scale, an override or a notebook parameter is not valid."""


class DataError(CifarlibError):
    """The data set is missing, damaged or cannot be downloaded."""


class RecordError(CifarlibError):
    """A record is damaged, edited or written by another format."""


class UnreadableError(RecordError):
    """A file, good perhaps, that cannot be read at this moment: no reason to make it again."""


class RunError(CifarlibError):
    """A run is not possible on this machine, or did not finish."""


class UnavailableError(RunError):
    """A run waits for something that this machine lacks, such as pre-trained weights."""


class MissingPackageError(CifarlibError):
    """A command needs a package that is not installed (``extras`` says which extra has it)."""


class ReportError(CifarlibError):
    """A notebook failed, or the report could not be assembled."""
