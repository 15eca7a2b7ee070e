"""The entry point: runs the command line, and turns expected faults into one message and their exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `bigmodel` with the process's arguments and leave with its status."""
    _leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status (see errors.py); an unexpected error is raised."""
    from bigmodel_cli.cli import app
    from bigmodel_cli.errors import BigmodelError, memory_remedy

    try:
        with memory_remedy(_memory_remedy(arguments)):
            app(arguments, prog_name="bigmodel")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BigmodelError as error:
        if arguments[:1] == ["--debug"]:
            raise
        _tell(f"{error}" if error.status == 2 and _has_place(str(error)) else f"bigmodel: {error}")
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        from bigmodel_cli.console import mute_stdout

        mute_stdout()
    return 0


def _has_place(message: str) -> bool:
    """Whether a message begins with the place of a fault (file:line:column, or --set ...)."""
    first = message.splitlines()[0]
    return first.startswith("--") or any(piece.isdigit() for piece in first.split(":")[1:3])


def _memory_remedy(arguments: list[str]) -> str:
    """What to do where a command runs out of memory; training and evaluation also divide their batches by themselves."""
    remedies = {
        "pretrain": "set a smaller train.micro_batch, or make the model smaller",
        "finetune": "set a smaller train.micro_batch, or make the model smaller",
        "eval": "set a smaller batch: --set train.validation_batch=16; or use a machine with more memory",
        "predict": "give shorter or smaller inputs, fewer --beams or --max-tokens; or use a machine with more memory",
        "attend": "give a shorter or smaller input; or use a machine with more memory",
        "bench": "set a smaller --set train.batch_size, or make the model smaller",
    }
    command = next((word for word in arguments if not word.startswith("-")), "")
    return remedies.get(command, "free some, or use a machine with more")


def _tell(message: str) -> None:
    from bigmodel_cli.console import say

    say(message)


def _leave(status: int) -> NoReturn:
    """Flush and leave without the interpreter's slow tear-down of torch; a reader that has gone is no error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    import atexit

    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    main()
