"""What is shown around a training: whether it could begin, and what a finetuning bought."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.errors import BigmodelError

if TYPE_CHECKING:
    from bigmodel_cli.evaluation.gains import Gains
    from bigmodel_cli.train.signals import Signals


def say_taken(out: Path | None) -> None:
    """Say where a training could not begin in the folder that --out names."""
    from bigmodel_cli.console import say
    from bigmodel_cli.rundir import is_taken

    if out is not None and is_taken(out):
        say(f"{out}: holds a run (or other files) already: a training needs another --out")


def gains_of(path: Path, device: str, signals: Signals) -> Gains | None:
    """Show on stderr what a finetuning bought; a fault or a signal ends only that."""
    from bigmodel_cli.console import say
    from bigmodel_cli.evaluation.gains import gains
    from bigmodel_cli.train.signals import Interrupted

    try:
        signals.again()
        found = gains(path, device)
    except Interrupted:
        say("stopped by a signal after the end of the training: what it bought is left out")
        return None
    except BigmodelError as error:
        say(f"what the finetuning bought is not measured: {error}")
        return None
    finally:
        signals.end()
    if found is not None:
        say(found.to_text())
    return found
