"""Training of a byte-level BPE tokenizer, in its own process: the library's call ignores signals,
and a process can be killed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from typing import IO

from bigmodel_cli.data.text import bpe_process
from bigmodel_cli.data.text.tokenizer_library import END_OF_TEXT, LibraryTokenizer
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.progress import progress

LOOK = 0.2
"""Seconds between two looks at the progress of the merges."""
MERGES = "Compute merges"
"""The library's name for the slow stage after the texts were read."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> LibraryTokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most `vocab_size` tokens,
    end of text included.

    An exception, from a signal too, kills the training process. Raises `ResourceError` where that
    is killed, as the system does when the memory is full.
    """
    command = [sys.executable, "-P", bpe_process.__file__, str(vocab_size), END_OF_TEXT]
    pipe = subprocess.PIPE
    # In a session of its own: Ctrl-C reaches only this process, which then ends that one.
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        listener = _Listener(stderr)
        content: list[bytes] = []
        readers = [
            threading.Thread(target=listener.listen, daemon=True),
            threading.Thread(target=lambda: content.append(stdout.read()), daemon=True),
        ]
        try:
            for reader in readers:
                reader.start()
            with contextlib.suppress(BrokenPipeError):  # its last lines say why
                _send(texts, stdin)
            with progress("merging pairs into tokens", vocab_size, "") as shown:
                while readers[1].is_alive():
                    readers[1].join(LOOK)
                    shown.to(listener.merges)
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
            for reader in readers:
                reader.join()
    if process.returncode:
        raise _failure(process.returncode, listener)
    return LibraryTokenizer(b"".join(content))


class _Listener:
    """Reads the process's stderr: how many merges are made, and its other last lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.merges = stream, 0
        self.others: deque[str] = deque(maxlen=20)

    def listen(self) -> None:
        """Read lines until there are no more."""
        for line in self.stream:
            try:
                values = json.loads(line)
                if values["stage"] == MERGES:
                    self.merges = int(values["current"])
            except (ValueError, LookupError, TypeError):
                self.others.append(line.decode("utf-8", "replace").rstrip())


def _send(texts: Iterable[str], stream: IO[bytes]) -> None:
    """Send all texts, as `bpe_process.received` reads them."""
    for text in texts:
        encoded = text.encode("utf-8")
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
    stream.write(bpe_process.END.to_bytes(8, "little"))
    stream.flush()


def _failure(status: int, listener: _Listener) -> Exception:
    last = listener.others[-1] if listener.others else ""
    if status < 0 or "MemoryError" in last:
        why = f"was ended by signal {-status}" if status < 0 else "found no memory"
        return ResourceError(
            f"the training of the BPE tokenizer {why}{f' ({last})' if status < 0 and last else ''};"
            " it needs memory for every different word: use less text, or a tokenizer that is"
            " brought along (data.tokenizer: {type: file, path: ...})"
        )
    return RuntimeError("the training of the BPE tokenizer failed:\n" + "\n".join(listener.others))
