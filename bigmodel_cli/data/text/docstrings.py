"""Python's standard library as pairs of a function's source and the first sentence of its
docstring, on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.data.base import Say
from bigmodel_cli.data.text.corpus import ENDS, Survey, Texts, standard_library
from bigmodel_cli.data.text.pair_files import SIDES, Pair, PairSource
from bigmodel_cli.data.text.pairs import PairOptions

EVERYTHING = 10**9  # bytes
SHARES = {"test": 0.1, "val": 0.2}
"""Modules with a hash in the first tenth are for testing, in the second for validation."""
LEAST_WORDS = 3


class DocstringsOptions(PairOptions):
    """Functions of this Python's standard library without their docstring, and its first sentence;
    split by module.
    """

    test_data: ClassVar[str] = "data.type=pair_table"
    type: Literal["docstrings"] = "docstrings"
    long_sources: Literal["leave_out", "cut"] = Field(
        "cut", description="what training does with a pair whose source is longer than context"
    )
    lines: Annotated[int, Field(gt=0, le=10_000)] = Field(
        30, description="of a function's source that are kept"
    )

    def splits(self, base: Path) -> tuple[str, ...]:
        return ("train", "val", "test")

    def sources(self, base: Path, only: str | None, say: Say) -> dict[str, PairSource]:
        """The splits, each from modules of its own."""
        found: dict[str, list[Pair]] = {split: [] for split in ("train", "val", "test")}
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(standard_library(EVERYTHING)):
            found[split_of(path.relative_to(root).as_posix())] += functions(path, self.lines)
        return {split: in_memory(pairs) for split, pairs in found.items() if only in (None, split)}


def split_of(module: str) -> str:
    """The split of a module, by its (package's) name, so that files of a package stay together."""
    name = module.split("/")[0].removesuffix(".py")
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return next((split for split, end in SHARES.items() if share < end), "train")


def functions(path: Path, lines: int) -> Iterator[Pair]:
    """(source without its docstring, the docstring's first sentence) of each function whose
    sentence has a few words or more.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # a file in another encoding, or a deliberately broken one
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        sentence = first_sentence(ast.get_docstring(node) or "")
        if len(sentence.split()) >= LEAST_WORDS and len(node.body) > 1:
            node.body = node.body[1:]
            yield "\n".join(ast.unparse(node).split("\n")[:lines]), sentence


def first_sentence(docstring: str) -> str:
    """The docstring's first paragraph up to its first full stop, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]


def in_memory(pairs: list[Pair]) -> PairSource:
    """Pairs that are kept in memory."""
    content = b"".join(text.encode() + b"\xff" for pair in pairs for text in pair)
    sha = hashlib.sha256(content).hexdigest()
    symbols = "".join(sorted({c for pair in pairs for text in pair for c in text}))
    characters = sum(len(a) + len(b) for a, b in pairs)

    def corpus(side: str | None) -> tuple[Texts, Survey]:
        chosen = [SIDES.index(s) for s in (SIDES if side is None else (side,))]
        texts = Texts(files=(), source=lambda: (pair[i] for pair in pairs for i in chosen))
        return texts, Survey(f"{sha}-{side}", characters, ENDS, symbols)

    return PairSource(lambda: iter(pairs), [sha], characters, corpus)
