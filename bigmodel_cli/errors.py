"""Expected faults and their exit statuses.

An expected fault is a `BigmodelError`: the command line prints its message (one line, or one line
per fault of a spec) on stderr and leaves with its status. Anything else that is raised is a bug: a
traceback and status 1.
"""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from typing import Any

_NAMED = re.compile(r"(?:([a-z_]\w*(?:\.\w+)*): )?(.*)", re.DOTALL)
"""The path of an option at the beginning of a message, if any, and what is wrong."""


class BigmodelError(Exception):
    """An expected fault: the message says what is wrong, where, and what to do."""

    status = 1


class SpecError(BigmodelError):
    """The command line or a spec is wrong (status 2)."""

    status = 2


class Unfit(SpecError):
    """A valid wish that this network or this machine cannot fulfil (status 2)."""


class OptionError(SpecError, ValueError):
    """Faults of options, each the path of an option ("" for the options as a whole) and what is
    wrong.

    A part raises a plain `ValueError`, whose text may begin with the option: 'num_heads: 3 heads do
    not divide dim 16'.
    """

    def __init__(self, *faults: tuple[str, str]) -> None:
        self.faults = tuple(dict.fromkeys(faults))
        super().__init__("\n".join(": ".join(filter(None, fault)) for fault in self.faults))


@contextlib.contextmanager
def under(path: str) -> Iterator[None]:
    """Inside, options below `path` are built: a `ValueError` becomes an `OptionError` with that
    path in front.
    """
    try:
        yield
    except ValueError as error:
        own, what = _NAMED.fullmatch(str(error)).groups("")  # type: ignore[union-attr]
        faults = error.faults if isinstance(error, OptionError) else ((own, what),)
        raise OptionError(
            *((".".join(filter(None, (path, own))), what) for own, what in faults)
        ) from None


class Faults:
    """Collects faults of several options, to be reported together."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def under(self, path: str) -> Iterator[None]:
        """As `under`, but continues after a fault."""
        try:
            with under(path):
                yield
        except OptionError as error:
            self.found += error.faults

    def build(self, path: str, options: Any, *arguments: Any) -> Any:
        """Build the options at that path; None where there are none, or they are at fault."""
        with self.under(path):
            return None if options is None else options.build(*arguments)
        return None

    def check(self) -> None:
        """Raise `OptionError` if there was any fault."""
        if self.found:
            raise OptionError(*self.found)


class DataError(BigmodelError):
    """The data cannot be used (status 3)."""

    status = 3


class MissingData(DataError):
    """The data is not where the spec says (status 3)."""


class CheckpointError(BigmodelError):
    """A checkpoint is damaged or does not fit (status 4)."""

    status = 4


class ResourceError(BigmodelError):
    """A fault of disk, memory, permission, lock or device (status 5)."""

    status = 5


class OutOfMemory(ResourceError):
    """Out of memory (status 5); what was tried has had no effect."""


class NumericsError(BigmodelError):
    """The loss or a gradient is not finite (status 6)."""

    status = 6


class ProcessError(BigmodelError):
    """Another process of the run is gone or hangs (status 7), or ended by a fault of its own, whose
    status it then has.
    """

    status = 7

    def __init__(self, message: str, status: int = 7) -> None:
        super().__init__(message)
        self.status = status


class Regression(BigmodelError):
    """Something surely takes longer than it may (status 8)."""

    status = 8


class Stopped(BigmodelError):
    """Stopped by a signal, after saving a checkpoint: the status is 128 + the signal's number (129,
    130, 143).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.status = 128 + signal_number


def status_of(error: BaseException) -> int:
    """The exit status of a command that ends with this error."""
    if isinstance(error, BigmodelError):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 130
    return ResourceError.status if is_out_of_memory(error) else BigmodelError.status


def did_you_mean(word: str, choices: object) -> str:
    """'; did you mean X?' for the closest of the choices, or '' where none is close."""
    import difflib

    names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
    close = difflib.get_close_matches(word[:100], names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


ALLOCATORS = (
    "can't allocate memory",  # PyTorch's allocator for the CPU
    "cannot allocate memory",  # the system's text of ENOMEM
    "not enough memory",  # the same allocator on other systems
    "out of memory",  # CUDA and MPS
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't start new thread",  # whose stack found no room
)
"""Beginnings or parts (in lower case) of `RuntimeError` messages that report a lack of memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be allocated, by Python, NumPy, PyTorch, its libraries or the
    system.
    """
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(words in text for words in ALLOCATORS)


def compile_fault(error: BaseException) -> str | None:
    """What is to be said where `torch.compile` fails, as a compiler of kernels does for some
    shapes; None for another error.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if not kinds & {"BackendCompilerFailed", "InductorError"}:
        return None
    lines = [line.strip() for line in str(error).splitlines() if re.match(r" *\w*Error: ", line)]
    reason = f" ({lines[-1]})" if lines else ""
    return f"torch.compile: the network cannot be compiled{reason}; train.compile: off goes without"


def forget_frames(error: BaseException) -> None:
    """Release what the failed calls hold: it fills the memory."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


@contextlib.contextmanager
def memory_remedy(remedy: str, kind: type[ResourceError] = OutOfMemory) -> Iterator[None]:
    """Turn a lack of memory inside into an `OutOfMemory` with a remedy, or another `kind` where
    work is half done.
    """
    try:
        yield
    except BigmodelError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)
        first = next(iter(str(error).strip().splitlines()), "")
        raise kind(f"out of memory{f' ({first})' if first else ''}; {remedy}") from None
