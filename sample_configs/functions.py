"""Writes functions.jsonl: functions of Python's standard library, a line each, with what
regression_functions.yaml, multilabel_functions.yaml, tagging_functions.yaml, chat_functions.yaml
and preferences_finetune.yaml learn of them.

  python sample_configs/functions.py
"""

import ast
import io
import itertools
import json
import math
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    ast.If: "if", ast.For: "for", ast.While: "while", ast.Try: "try", ast.With: "with",
    ast.Raise: "raise", ast.Return: "return", ast.Assert: "assert",
}  # fmt: skip
MOST = 500
"""Characters of a function; longer ones are left out."""


def rows() -> Iterator[dict[str, Any]]:
    """Functions: source; log2 of its number of nodes; kinds of its statements; and its
    tokens, each tagged as an argument, as what is called, or O.
    """
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef):
                source = ast.unparse(node)
                if len(source) <= MOST:
                    yield {"source": source, **learnt(node, source)}


def learnt(node: ast.FunctionDef, source: str) -> dict[str, Any]:
    """What is known of a function."""
    inner = list(ast.walk(node))
    arguments = {one.arg for one in inner if isinstance(one, ast.arg)}
    read = tokenize.generate_tokens(io.StringIO(source).readline)
    tokens = [one.string for one in read if one.string.strip() and "\n" not in one.string]
    tags = [
        "B-ARGUMENT" if token in arguments else "B-CALL" if token.isidentifier() and then == "("
        else "O"
        for token, then in zip(tokens, [*tokens[1:], ""], strict=True)
    ]  # fmt: skip
    kinds = sorted({KINDS[type(one)] for one in inner if type(one) in KINDS})
    others = sorted({*KINDS.values()} - {*kinds})
    return {
        "size": round(math.log2(len(inner)), 2),
        "statements": kinds,
        "prompt": f"Which statements are in this function?\n{source}",
        "completion": ", ".join(kinds) or "none",
        "chosen": ", ".join(kinds) or "none",
        "rejected": ", ".join(others) or "none",
        "tokens": ["".join(token.split()) for token in tokens],
        "tags": tags,
    }


def write(path: Path, most: int = 6000) -> None:
    """Write the rows as JSON Lines."""
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in itertools.islice(rows(), most)), encoding="utf-8"
    )


if __name__ == "__main__":
    write(Path("functions.jsonl"))
