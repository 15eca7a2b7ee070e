"""`bigmodel bench --learn`: its options, and what is done with what it found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.shared import print_result, refuse
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change


@dataclass(frozen=True)
class LearningOptions:
    """How structures are compared by what they learn."""

    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help=(
                "Compare what the specs learn within an equal --budget, each at its own best"
                " learning rate; --out is a folder, with which the same command goes on, and --csv"
                " has the curves."
            ),
        ),
    ] = False
    budget: Annotated[
        str | None,
        typer.Option(
            help=(
                "What each run of --learn has: time of training (3min), useful FLOPs (2e15flop),"
                " training data (10MB, 50ksamples), 500steps; or a number of parameters, to which"
                " model.dim is scaled (1M), alone or beside one of them: 1M,3min."
            )
        ),
    ] = None
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N|N,N,...",
            help="How many seeds --learn has, or which, e.g. --seeds 3 or 4,5. [default: 2]",
        ),
    ] = None
    rates: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=13,
            help=(
                "Learning rates that --learn tries at first, by factors of two around the spec's;"
                " more while an end is the best. 1 takes the spec's alone. [default: 3]"
            ),
        ),
    ] = None

    def check(self) -> None:
        """Raise `SpecError` for options that have no effect without --learn."""
        if not self.learn:
            others = {"--budget": self.budget, "--seeds": self.seeds, "--rates": self.rates}
            refuse("bench without --learn", others)

    def run(
        self,
        targets: Sequence[str],
        changes: Sequence[Change],
        device: str,
        json: bool,
        files: Mapping[str, Path | None],
        others: Mapping[str, object],
    ) -> None:
        """Compare them and print the result; `files` are --out, --png and --csv.

        `others` are options of `bench` that have no effect here.
        """
        from bigmodel_cli.bench.learn import Request, learn, to_text
        from bigmodel_cli.bench.learn.picture import draw
        from bigmodel_cli.bench.learn.saved import write_csv
        from bigmodel_cli.outputs import check_output
        from bigmodel_cli.overrides import key_of
        from bigmodel_cli.pictures import check_picture

        refuse("--learn", others)
        if not targets:
            raise SpecError("--learn: name the specs to compare, e.g. --learn a.yaml b.yaml")
        if self.budget is None:
            raise SpecError("--learn needs --budget, e.g. --budget 3min")
        own = ("train.seed", "train.optimizer.lr")
        for key in own:
            if key in map(key_of, changes):
                raise SpecError(f"--set {key} has no effect beside --learn, which sets it")
        png, csv = files["--png"], files["--csv"]
        if png is not None:
            check_picture(png, "--png")
        if csv is not None:
            check_output(csv, "--csv")
        request = Request(
            targets,
            self.budget,
            changes,
            seeds_of(self.seeds),
            self.rates or 3,
            device,
            files["--out"],
            sys.argv[1:],
        )
        found = learn(request)
        if png is not None:
            draw(found, png)
        if csv is not None:
            write_csv(found, csv)
        print_result(found.to_json() if json else to_text(found))


def seeds_of(text: str | None) -> list[int]:
    """The seeds of a number of them, or of a list. Raises `SpecError`."""
    if text is None:
        return [0, 1]
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise SpecError(f"--seeds {text}: how many (3), or which, with commas between them (4,5)")
    numbers = [int(word) for word in words]
    if "," not in text:
        if not 1 <= numbers[0] <= 100:
            raise SpecError(f"--seeds {text}: 1 to 100 of them; a list has commas (4,5 or 4,)")
        return list(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise SpecError(f"--seeds {text}: one is given twice; it would be the same run again")
    return numbers
