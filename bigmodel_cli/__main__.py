"""Entry point: runs the command line and turns expected faults into one message and an exit
status.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

MOST_AT_EXIT = 20.0
"""Time limit, in seconds, for what packages do when the process ends (`atexit`)."""


def main() -> NoReturn:
    """Run `bigmodel` with the process's arguments and leave with its status."""
    _open_streams()
    several = "RANK" in os.environ
    if several:
        from bigmodel_cli.commands.processes import one_voice, refuse_several, say_alone
        from bigmodel_cli.distributed.launch import stop_with_launcher

        stop_with_launcher()
        one_voice()
    try:
        if several:
            refuse_several(sys.argv[1:])
        status = run(sys.argv[1:], last=True)
    except KeyboardInterrupt:  # before signal handlers are installed
        status = 130
    except SystemExit as refused:
        status = int(refused.code or 0)
    except Exception:
        import traceback

        _tell(traceback.format_exc().rstrip())
        status = 1
    if several:
        say_alone(status)
    _leave(status)


def _open_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise the next file to be opened would get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def run(arguments: list[str], *, last: bool = False) -> int:
    """Run one command and return its exit status (see errors.py); an unexpected error is raised.

    `last`: the process ends after this command, and later signals are ignored.
    """
    from bigmodel_cli.console import forget_what_was_said
    from bigmodel_cli.errors import BigmodelError, memory_remedy
    from bigmodel_cli.plugin_faults import plugin_faults
    from bigmodel_cli.train.signals import Interrupted

    forget_what_was_said()
    try:
        with _stoppable(last), plugin_faults(), memory_remedy(_memory_remedy(arguments)):
            return 0 if _show_options(arguments) else _run_command(arguments)
    except Interrupted as stop:
        _tell(f"bigmodel: stopped by {signal.Signals(stop.number).name}")
        return 128 + stop.number
    except SystemExit as exit_:
        # Typer exits so, with 1, when the reader has gone
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            return 0
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
    except Exception as error:
        return _other_fault(error)
    return 0


def _run_command(arguments: list[str]) -> int:
    """Run a command by Typer and return its exit status; a wrong command line is reported."""
    from bigmodel_cli.cli import USAGE_FAULT, app

    try:
        status = app(arguments, prog_name="bigmodel", standalone_mode=False)
    except USAGE_FAULT as fault:
        text = io.StringIO()
        hint = _usage_hint(arguments, fault)
        fault.show(text)
        _tell(text.getvalue().rstrip("\n") + hint)  # the arguments in it may contain anything
        return int(fault.exit_code)
    return status if isinstance(status, int) else 0


def _show_options(arguments: list[str]) -> bool:
    """Whether this was `bigmodel options [PATH] [TYPE] [--json]`, which is answered here.

    Importing Typer, and pydantic which it needs, takes several times as long as all the rest.
    """
    words = [word for word in arguments[1:] if word != "--json"]
    if arguments[:1] != ["options"] or len(words) > 2 or any(w.startswith("-") for w in words):
        return False
    from bigmodel_cli.options import print_options

    print_options(*words, json="--json" in arguments)
    return True


def _usage_hint(arguments: list[str], fault: Any) -> str:
    """What to write instead of an unknown option or word, as a line of text; '' where that is not
    known.
    """
    unknown = str(fault.option_name) if "No such option" in fault.message else ""
    if not unknown and "unexpected extra" not in fault.message:
        return ""
    from bigmodel_cli.explain.words import instead
    from bigmodel_cli.spec import Spec

    hint = instead(arguments, unknown, Spec)
    if hint and unknown:
        fault.possibilities = None  # the command's options with similar names
    return f"\n{hint}" if hint else ""


def _other_fault(error: Exception) -> int:
    """Report a fault of stdout or of a compiler and return its status; raise any other again."""
    cause = error.__cause__
    # what Typer makes of these
    if isinstance(cause, EOFError | KeyboardInterrupt) and type(error).__name__ == "Abort":
        if isinstance(cause, KeyboardInterrupt):
            return 130
        raise cause
    if isinstance(error, OSError) and _is_of_typer(error):
        from bigmodel_cli.console import stdout_fault

        _tell(f"bigmodel: {stdout_fault(error)}")
        return 5
    from bigmodel_cli.errors import ResourceError, compile_fault

    if (fault := compile_fault(error)) is not None:
        _tell(f"bigmodel: {fault}")
        return ResourceError.status
    raise error


def _is_of_typer(error: OSError) -> bool:
    """Whether Typer raised it.

    Typer opens no files: what it could not write is its help (`--help > /dev/full`).
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].partition(".")[0] in (
        "typer",
        "click",
    )


@contextlib.contextmanager
def _stoppable(last: bool) -> Iterator[None]:
    """Raise a signal that ends the command as `Interrupted`, so that drafts are removed; a second
    one exits at once.

    Afterwards the previous handlers are restored, or, where the process ends (`last`), signals are
    ignored. Training installs its own handlers. A signal that is ignored already (`nohup`) stays
    ignored.
    """
    from bigmodel_cli.errors import BigmodelError
    from bigmodel_cli.train.signals import Interrupted, received

    received.clear()

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        raise Interrupted(number)

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, stop)
        yield
    except Exception as error:
        # pydantic's core makes an error of its own of what is raised while it builds a validator
        if received and not isinstance(error, BigmodelError):
            raise Interrupted(received[0]) from None
        raise
    finally:
        received.clear()
        for ended, handler in before.items():
            signal.signal(ended, signal.SIG_IGN if last else handler)


def _has_place(message: str) -> bool:
    """Whether a message begins with the position of a fault (file:line:column, or --set ...)."""
    first = message.splitlines()[0]
    return first.startswith("--") or any(piece.isdigit() for piece in first.split(":")[1:3])


def _memory_remedy(arguments: list[str]) -> str:
    """What to do when a command runs out of memory.

    Training and evaluation also split their batches by themselves.
    """
    remedies = {
        "pretrain": "set a smaller train.micro_batch_size, or make the model smaller",
        "finetune": "set a smaller train.micro_batch_size, or make the model smaller",
        "eval": (
            "set a smaller batch: --set train.validation_batch=16; or use a machine with more"
            " memory"
        ),
        "predict": (
            "give shorter or smaller inputs, fewer --beams or --max-tokens; or use a machine with"
            " more memory"
        ),
        "attend": "give a shorter or smaller input; or use a machine with more memory",
        "bench": "set a smaller --set train.batch_size, or make the model smaller",
    }
    command = next((word for word in arguments if not word.startswith("-")), "")
    return remedies.get(command, "free some, or use a machine with more")


def _tell(message: str) -> None:
    from bigmodel_cli.console import say

    say(message)


def _leave(status: int) -> NoReturn:
    """Flush and exit, skipping the slow tear-down of torch.

    A reader that has gone is not an error.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the exit status is settled
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # An exit function may hang, such as a tracker's upload.
    ending = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    ending.start()
    ending.join(MOST_AT_EXIT)
    os._exit(status)


if __name__ == "__main__":
    main()
