"""Faults in the code of plugins, told with the file and the line. Nothing here takes long to
import.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import linecache
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from bigmodel_cli.errors import BigmodelError, SpecError

VARIABLE = "BIGMODEL_PLUGINS"
"""Where the command line leaves the paths, so that loader workers and the processes of a launcher
find them too.

It is a list in JSON of pairs: the path as it was given, for messages, and the absolute one.
"""


def files() -> Iterator[tuple[str, Path]]:
    """The plugins of this process: the path as it was given, and the absolute one."""
    for text, absolute in json.loads(os.environ.get(VARIABLE) or "[]"):
        yield text, Path(absolute)


@contextlib.contextmanager
def plugin_faults() -> Iterator[None]:
    """Inside, what a plugin's code raises becomes a `SpecError` with the file and the line that was
    at work.
    """
    try:
        yield
    except BigmodelError:
        raise
    except (Exception, SystemExit) as error:
        for text, path in files():
            if line := line_of(path, error):
                what = f"{text}{line}: {type(error).__name__}: {error}".removesuffix(": ")
                raise SpecError(f"{what} (in a plugin; --debug shows the traceback)") from error
        if isinstance(error, SystemExit):  # the end of a command that has one of its objects
            raise
        for text, path in files():
            if user := _user(path, error):
                raise SpecError(
                    f"{text}{user}: {type(error).__name__}: {error} (what the plugin gives cannot"
                    " be used; --debug shows the traceback)"
                ) from error
        raise


def line_of(path: Path, error: BaseException) -> str:
    """':12', the last line of the file that was at work when it was raised; '' where none was."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return f":{lines[-1]}" if lines else ""


def _user(path: Path, error: BaseException) -> str:
    """':12: Name: in `task.loss(...)`': the innermost line that had an object of one of the file's
    classes, and that class where the line names the object; '' where none had.
    """
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        code = linecache.getline(frame.f_code.co_filename, line).strip()
        objects = [*frame.f_locals.items()]
        for value in frame.f_locals.values():
            with contextlib.suppress(TypeError):  # without attributes
                objects += vars(value).items()
        words = re.findall(r"\w+", code)
        places = {word: place for place, word in reversed([*enumerate(words)])}
        objects.sort(key=lambda item: places.get(item[0], len(words)))
        for name, value in objects:
            with contextlib.suppress(OSError, TypeError):  # not written in a file
                if inspect.getfile(type(value)) == str(path):
                    first = f":{inspect.getsourcelines(type(value))[1]}: {type(value).__name__}"
                    if code.startswith("raise "):  # a check of what this object gave
                        return first
                    return f"{first if name in places else ''}: in `{code}`"
    return ""
