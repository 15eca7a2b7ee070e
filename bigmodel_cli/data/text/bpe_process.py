"""The process that trains a BPE tokenizer, run as a script by `bpe.py`: it imports nothing of
bigmodel, and so starts at once.

Texts come on stdin, each after its length (8 bytes, little-endian), and `END` instead of a length
after the last one. tokenizer.json goes to stdout; progress of the merges goes to stderr, a line of
JSON each time (where the library can report it). When stdin is closed, the parent has gone, and the
process ends.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

END = 2**64 - 1
PART = 1 << 16
"""In characters.

The library takes 256 texts at once, so that long ones are passed in parts of about this size.
"""
CUT = re.compile(r"[!-~]\n(?=[!-~])")
"""A line's end where cutting the text does not change its split into words, which the merges never
cross.
"""


def parts(texts: Iterator[str]) -> Iterator[str]:
    """The texts, long ones in parts cut at `CUT`."""
    for text in texts:
        start = 0
        while len(text) - start > PART and (found := CUT.search(text, start + PART - 2)):
            yield text[start : found.end()]
            start = found.end()
        yield text[start:]


def received(stream: IO[bytes]) -> Iterator[str]:
    """The texts from the stream; the process ends where it breaks off."""
    while True:
        head = stream.read(8)
        size = int.from_bytes(head, "little")
        if size == END and len(head) == 8:
            return
        content = stream.read(size) if len(head) == 8 else b""
        if len(head) < 8 or len(content) < size:
            os._exit(1)
        yield content.decode("utf-8")


def train(texts: Iterator[str], vocab_size: int, end_of_text: str) -> str:
    """The tokenizer.json of a byte-level BPE of at most `vocab_size` tokens, the end of text
    included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    tells: dict[str, Any] = (
        {"progress_format": "json"} if hasattr(trainers.BpeTrainer, "progress_format") else {}
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[end_of_text],
        show_progress=bool(tells),
        **tells,
    )
    library.train_from_iterator(texts, trainer)
    return str(library.to_str())


def _end_with(stream: IO[bytes]) -> None:
    stream.read()
    os._exit(1)


def main() -> None:
    """Receive the texts, train, and write tokenizer.json to stdout."""
    vocab_size, end_of_text = int(sys.argv[1]), sys.argv[2]

    def texts() -> Iterator[str]:
        yield from parts(received(sys.stdin.buffer))
        threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()

    content = train(texts(), vocab_size, end_of_text)
    sys.stdout.buffer.write(content.encode("utf-8"))
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
