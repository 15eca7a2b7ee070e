"""Calls into libraries that do not let Python handle a signal until they return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
LOOK = 1.0  # seconds


def heeding(call: Callable[[], Found]) -> Found:
    """Run `call` in another thread, so that a signal's handler runs at once here, and may raise.

    The call must release the GIL. If a handler raises, the call is abandoned, and runs on until it
    or the process ends.
    """
    found: list[Found] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK)
    if raised:
        raise raised[0]
    return found[0]
