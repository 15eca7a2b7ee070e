"""The entry point: runs the command line, and turns expected faults into one message and their exit status."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `bigmodel` and leave with one of the statuses in errors.py."""
    from bigmodel_cli.cli import app
    from bigmodel_cli.errors import BigmodelError

    status = 0
    try:
        app(prog_name="bigmodel")
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BigmodelError as error:
        if "--debug" in sys.argv[1:2]:
            raise
        _tell(f"{error}" if error.status == 2 and _has_place(str(error)) else f"bigmodel: {error}")
        status = error.status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        from bigmodel_cli.console import mute_stdout

        mute_stdout()
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _tell(
            f"bigmodel: out of memory ({str(error).splitlines()[0]}); set a smaller train.micro_batch, or a smaller model"
        )
        status = 5
    _leave(status)


def _has_place(message: str) -> bool:
    """Whether a message begins with the place of a fault (file:line:column, or --set ...)."""
    first = message.splitlines()[0]
    return first.startswith("--") or any(piece.isdigit() for piece in first.split(":")[1:3])


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _tell(message: str) -> None:
    from bigmodel_cli.console import say

    say(message)


def _leave(status: int) -> NoReturn:
    """Flush and leave without the interpreter's slow tear-down of torch; a reader that has gone is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    import atexit

    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    main()
