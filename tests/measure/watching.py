"""What the process does beside computing: an audit hook that tells of files opened elsewhere,
programs, sockets, new modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# fmt: off
STARTS = (
    "socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork",
    "pty.", "urllib.", "http.",
    "ftplib.", "smtplib.", "webbrowser.", "ctypes.dlopen", "pickle.find_class", "os.startfile",
)
"""Audit events, by their first letters, that a checkpoint must not bring about."""
OPENS = (
    "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
    "os.symlink",
    "os.truncate", "os.chmod", "os.chown", "shutil.copyfile", "shutil.move",
)
"""Those whose first argument is a path."""
DECLARED = frozenset((
    "numpy", "torch", "torchvision", "PIL", "yaml", "pydantic", "rich", "safetensors", "tokenizers",
    "typer", "matplotlib",
    "soundfile", "sklearn", "pyarrow", "sacrebleu", "jiwer", "rouge_score", "scipy",
))
"""Packages that bigmodel needs, or can use."""
# fmt: on


class Watch:
    """Notes what happens between `begin` and `found` that is neither below the `inside` folders nor
    among what is `known`.

    `packages` are folders that Python reads its modules from: reading there is right, writing is
    not.
    """

    def __init__(
        self, inside: Iterable[Path], outside: Iterable[Path], known: Iterable[str] = ()
    ) -> None:
        self.inside, self.outside = [str(p) + "/" for p in inside], [str(p) + "/" for p in outside]
        prefixes = {
            sys.prefix,
            sys.base_prefix,
            os.path.realpath(sys.prefix),
            str(Path(os.__file__).parent),
        }
        here = Path(__file__).resolve().parents[2]
        self.packages = [f"{p}/" for p in (*prefixes, here / "bigmodel_cli", here / "tests")]
        self.known, self.on, self.noted = set(known), False, set[str]()
        self.modules = (
            frozenset(name.partition(".")[0] for name in sys.modules)
            | DECLARED
            | sys.stdlib_module_names
        )
        sys.addaudithook(self.hook)

    def begin(self) -> None:
        """Note what happens from now on."""
        self.noted, self.on = set(), True

    def found(self) -> list[str]:
        """What was noted, in words; what is known left out."""
        self.on = False
        return sorted(self.noted - self.known)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if not self.on:
            return
        if event.startswith(STARTS):
            self.noted.add(event)
        elif event == "import":
            top = str(arguments[0]).partition(".")[0]
            if top not in self.modules:
                self.noted.add(f"import {top}")
        elif event in OPENS and not isinstance(arguments[0], int) and arguments[0] is not None:
            self.on = False  # what resolving a path does is not the case's doing
            self.path(event, arguments)
            self.on = True

    def path(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note a path that is opened, unless it is where the case may read and write."""
        path = os.path.abspath(os.fsdecode(arguments[0]))
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else os.O_NOFOLLOW
        real = path
        try:
            parent = os.path.realpath(os.path.dirname(path))
            real = (
                os.path.join(parent, os.path.basename(path))
                if flags & os.O_NOFOLLOW
                else os.path.realpath(path)
            )
        except OSError:
            pass
        reads = event in ("os.listdir", "os.scandir") or (
            event == "open" and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if real == os.devnull:  # which takes all, and tells nothing
            return
        if any(f"{real}/".startswith(root) for root in self.outside):
            self.noted.add(f"{event} of what is outside: {os.path.basename(real)}")
        elif any(f"{real}/".startswith(root) for root in self.inside) or (
            reads and f"{real}/".startswith(tuple(self.packages))
        ):
            return
        else:
            self.noted.add(f"{event} {real}" + ("" if reads else " to write"))
