"""Named places in the real code path where a test can kill the process or make a call fail.

``BIGMODEL_FAILPOINT=checkpoint.renamed:kill`` kills the process (SIGKILL) when it first reaches
that place; ``name:kill:3`` at the third time; ``name:EIO`` raises that `OSError` instead;
``name:SIGTERM`` sends the signal to the process itself, ``name:group=SIGTERM`` to its group, loader
workers too; ``name:sleep=5`` waits. Unset, a failpoint costs one dictionary look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import time

_reached: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Do what ``BIGMODEL_FAILPOINT`` asks for at the place called `name`, or nothing."""
    wanted = os.environ.get("BIGMODEL_FAILPOINT")
    if not wanted:
        return
    place, action, *rest = wanted.split(":")
    if place != name:
        return
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] != int(rest[0] if rest else 1):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
    elif action.startswith("group="):
        os.killpg(os.getpgrp(), getattr(signal, action.removeprefix("group=")))
    elif action.startswith("sleep="):
        time.sleep(float(action.removeprefix("sleep=")))
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))
