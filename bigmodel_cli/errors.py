"""Expected faults and their exit statuses.

An expected fault is a `BigmodelError`: the command line prints its message (one line, or one line per fault of a spec) on
stderr and leaves with its status. Anything else that is raised is a bug: a traceback and status 1.
"""

from __future__ import annotations


class BigmodelError(Exception):
    """An expected fault: the message says what is wrong, where, and what to do."""

    status = 1


class SpecError(BigmodelError):
    """The command line or a spec is wrong (status 2)."""

    status = 2


class DataError(BigmodelError):
    """The data cannot be used (status 3)."""

    status = 3


class CheckpointError(BigmodelError):
    """A checkpoint cannot be trusted or does not fit (status 4)."""

    status = 4


class ResourceError(BigmodelError):
    """Disk, memory, permission, lock or device (status 5)."""

    status = 5


class NumericsError(BigmodelError):
    """The loss or a gradient is not finite (status 6)."""

    status = 6


class Stopped(BigmodelError):
    """Stopped by a signal, with a checkpoint saved: the status is 128 + the signal's number (129, 130, 143)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.status = 128 + signal_number


def status_of(error: BaseException) -> int:
    """The exit status that an error of any kind ends a command with."""
    if isinstance(error, BigmodelError):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 130
    return ResourceError.status if is_out_of_memory(error) else BigmodelError.status


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def did_you_mean(word: str, choices: object) -> str:
    """'; did you mean X?' for the closest of the choices, or '' where none is close."""
    import difflib

    names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
