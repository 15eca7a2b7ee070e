"""Ranks and scales that PEFT's files give to single modules: rank_pattern and alpha_pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor

MOST_STEPS = 5e8
"""Of matching patterns, which come from a stranger's file."""
COMPILING = 50_000
"""What reading a pattern takes, in steps."""
REPEATS = re.compile(r"(?<!\\)[*+?]")
HARMLESS = re.compile(r"(?:[\w.^$|\-]|\\.|[*+?](?![*+?{])|\[[\w\-^]+\]|\((?![?*+])|\)(?![*+?{]))+")
"""Regular expressions that repeat single characters alone, so that their cost is known."""


@dataclass(frozen=True)
class Ranks:
    """What adapter_config.json says of each module of theirs.

    The product of a module's factors is multiplied by alpha / rank ** power.
    """

    rank: int
    alpha: float
    power: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]

    def of(self, module: str) -> tuple[int, float]:
        """Rank and alpha. As in PEFT the first pattern counts that fits the end of the name."""
        rank = next((v for p, v in self.rank_pattern.items() if p.match(module)), self.rank)
        alpha = next((v for p, v in self.alpha_pattern.items() if p.match(module)), self.alpha)
        return rank, alpha

    def own(self, alpha: float, whole: int, rank: int) -> float:
        """The alpha of a part that has this rank of a module's whole one, and its scale."""
        if whole == rank:
            return alpha
        found = alpha * (rank / whole) ** self.power
        return self.alpha if math.isclose(found, self.alpha) else float(f"{found:.15g}")


def read_ranks(config: Config, stabilized: bool, modules: Iterable[str]) -> Ranks:
    """Raises `CheckpointError` for values that are none, and patterns that are not read."""
    longest, count = max(map(len, modules), default=0), len([*modules])
    rank = _checked(config, "r", config.get("r", int), whole=True)
    alpha = _checked(config, "lora_alpha", config.get("lora_alpha", float), whole=False)
    steps = 0
    found: list[dict[re.Pattern[str], Any]] = []
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: dict[re.Pattern[str], Any] = {}
        for text, value in (config.maybe(key, dict) or {}).items():
            repeats = len(REPEATS.findall(text))
            steps += count * math.comb(longest + repeats, repeats + 1) + COMPILING + len(text) ** 2
            shown = f"{key}: {clipped(text)}"
            if not HARMLESS.fullmatch(text) or steps > MOST_STEPS:
                raise CheckpointError(
                    f"{config.file}: {shown}: a pattern of this kind is not read; write the names"
                    " of modules instead"
                )
            try:
                pattern = re.compile(rf"(.*\.)?({text})$")
            except re.error:
                raise CheckpointError(f"{config.file}: {shown}: not a pattern") from None
            patterns[pattern] = _checked(config, shown, value, whole=key == "rank_pattern")
        found.append(patterns)
    return Ranks(int(rank), alpha, 0.5 if stabilized else 1.0, *found)


def _checked(config: Config, key: str, value: Any, whole: bool) -> float:
    right = type(value) is int or (not whole and type(value) is float and math.isfinite(value))
    if not right or not value > 0:
        raise CheckpointError(f"{config.file}: {key}: {str(value)[:40]!r} is not a number above 0")
    return value if whole else float(value)


def ranks_of_parts(b: Tensor, rows: Sequence[Sequence[int]], usual: int) -> list[int]:
    """The ranks of the parts that have these rows of B (M, R): several factors side by side have
    columns of their own, and zeros elsewhere; else each part has them all.
    """
    whole = b.shape[1]
    used = [(b[[*own]] != 0).any(0).nonzero().flatten().tolist() for own in rows]
    if len(rows) == 1:
        return [whole]
    apart = all(i * usual <= c < (i + 1) * usual for i, own in enumerate(used) for c in own)
    if whole == usual * len(rows) and apart:
        return [usual] * len(rows)
    if all(used) and all(one[-1] < other[0] for one, other in pairwise(used)):
        ends = [*(own[0] for own in used[1:]), whole]
        return [end - first for first, end in zip([0, *ends], ends, strict=False)]
    return [whole] * len(rows)


def patterns(
    said: Mapping[str, tuple[int, float]], rank: int, alpha: float
) -> dict[str, dict[str, Any]]:
    """The keys of adapter_config.json for modules of this rank and alpha; the inverse of
    `Ranks.of`.
    """
    odd = {m for m, (r, a) in said.items() if r != rank or not math.isclose(a, alpha)}
    # whose ends are other modules' names
    odd |= {m for m in said if any(m.endswith(f".{name}") for name in odd)}
    ordered = sorted(odd, key=len, reverse=True)
    return {
        "rank_pattern": {m: said[m][0] for m in ordered},
        "alpha_pattern": {m: plain(said[m][1]) for m in ordered},
    }


def plain(value: float) -> float:
    """PEFT counts alpha in whole numbers where it can; the last digit is a product's."""
    value = float(f"{value:.15g}")
    return int(value) if value == int(value) else value
