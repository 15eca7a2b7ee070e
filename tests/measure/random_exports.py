"""Random networks written for others and opened there: equal outputs, or refused by part.

    python tests/measure/random_exports.py [--count 200] [--first SEED] [--seeds SEED ...]
        [--to hf|timm|torchvision|gguf] [--only BASE ...] [--show]

Each seed draws a network that is nearly one of a published family (random_specs.py), with every
weight drawn. It is exported as `bigmodel export` does and opened by the package that the layout is
from. What must show, of those that are exported: no weight missing or left over there; outputs as
ours (fp32, relative to the largest, at most 1e-5; where rounding alone makes more, by what it does
in their own code); of encoders also with padding; read back by us the same options, outputs and,
exported once more, files to the bit; the same after a step of training. Of those that are refused:
status 2 and a part of the model named. Nothing else may happen.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from elsewhere import (
    FaultError,
    check_outputs,
    check_round_trip,
    drawn_weights,
    opened,
    ours_of,
    quiet_transformers,
    rows_for,
    source_of,
    step_of_training,
    written,
)
from random_specs import Drawn, draw, every_base

from bigmodel_cli.convert.family import written_out
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build

NAMED = re.compile(r"\b(?:model|data)\.[\w.]+")


@dataclass
class Outcome:
    """How a seed ended: exported, refused, or a fault."""

    seed: int
    drawn: Drawn
    target: str
    way: str  # "exported", "refused", "untried" or "fault"
    said: str
    family: str = ""
    apart: float = 0.0  # the largest difference of outputs


def try_seed(seed: int, target: str, names: list[str] | None = None) -> Outcome:
    """Draw, export, open, compare."""
    drawn = draw(seed, names)
    torch.manual_seed(seed)
    model = build(drawn.spec.model, drawn.info).eval()
    drawn_weights(model, seed, written_out(drawn.spec.model))
    with tempfile.TemporaryDirectory(prefix="exports-") as place:
        try:
            return _tried(seed, target, drawn, model, Path(place))
        except SpecError as error:
            named = [n for n in NAMED.findall(str(error)) if n.rstrip(".") != "model"]
            way = "refused" if named else "fault"
            return Outcome(seed, drawn, target, way, str(error))
        except FaultError as error:
            return Outcome(seed, drawn, target, "fault", str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
            return Outcome(seed, drawn, target, "fault", said)


def _tried(seed: int, target: str, drawn: Drawn, model: Any, place: Path) -> Outcome:
    said = written(target, source_of(drawn, model), place / "first")
    if "llama.cpp alone" in said:  # which is not here
        return Outcome(seed, drawn, target, "untried", said)
    theirs = opened(target, place / "first", drawn)
    largest = check_outputs(model, theirs, target, drawn, seed)
    if target != "gguf":
        name = next((place / "first").glob("*.pth")) if target == "torchvision" else None
        if name is None:
            check_round_trip(model, target, drawn, place / "first", seed)
    row = rows_for(drawn, seed + 1)[0]
    step_of_training(model, lambda model: ours_of(model, drawn, row))
    written(target, source_of(drawn, model), place / "trained")
    theirs = opened(target, place / "trained", drawn)
    largest = max(largest, check_outputs(model, theirs, target, drawn, seed + 1))
    family = getattr(theirs, "config", None)
    kind = str(getattr(family, "model_type", "")) or target
    return Outcome(seed, drawn, target, "exported", "", kind, largest)


def run(
    seeds: list[int], target: str, names: list[str] | None, tell: Callable[[str], None]
) -> list[Outcome]:
    """Try each seed; faults are told at once."""
    outcomes = []
    for seed in seeds:
        outcomes.append(try_seed(seed, target, names))
        if outcomes[-1].way == "fault":
            tell(shown(outcomes[-1]))
    return outcomes


def shown(outcome: Outcome) -> str:
    """An outcome in two lines."""
    drawn = outcome.drawn
    return (
        f"seed {outcome.seed} {outcome.target} {outcome.way} {outcome.family} <- {drawn.base}"
        f" ({drawn.task or 'no head'}), changed {', '.join(drawn.changed) or 'nothing'}\n"
        f"    {outcome.said}"
    )


def table(outcomes: list[Outcome]) -> str:
    """Counts and largest difference by what the drawing began as."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    largest: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for name in (outcome.drawn.base, "all"):
            counts[name][outcome.way] += 1
            largest[name] = max(largest[name], outcome.apart)
    lines = ["| drawn from | equal | refused by part | untried | fault | largest difference |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in [*sorted(counts.keys() - {"all"}), "all"]:
        of = [str(counts[name][way]) for way in ("exported", "refused", "untried", "fault")]
        apart = f"{largest[name]:.0e}" if counts[name]["exported"] else ""
        lines.append(f"| {name} | {' | '.join(of)} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--to", default="hf", choices=["hf", "timm", "torchvision", "gguf"])
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(every_base())}")
    parser.add_argument("--show", action="store_true", help="every outcome, not faults alone")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    quiet_transformers()
    seeds = given.seeds or list(range(given.first, given.first + given.count))
    outcomes = run(seeds, given.to, given.only, lambda text: print(text, flush=True))
    if given.show:
        for outcome in outcomes:
            print(shown(outcome))
    print(table(outcomes))
    sys.exit(any(outcome.way == "fault" for outcome in outcomes))


if __name__ == "__main__":
    main()
