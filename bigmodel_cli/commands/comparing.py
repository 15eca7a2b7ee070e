"""What `bigmodel bench` does with what it measured: save, show, compare, fail."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.errors import Regression, ResourceError, SpecError

if TYPE_CHECKING:
    from bigmodel_cli.bench.result import Result

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%?")


@dataclass(frozen=True)
class ComparingOptions:
    """What is done with the result."""

    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|GIT-REF",
            help=(
                "A saved result that the targets are compared with, e.g. --against main.json; or a"
                " commit, branch or tag: the first target, a spec, as it is there, with its"
                " plugins, takes turns with the others, e.g. --against main. A file is meant where"
                " there is one of that name."
            ),
        ),
    ] = None
    fail_above: Annotated[
        str | None,
        typer.Option(
            help=(
                "End with status 8 where a target surely takes this much longer than the first, or"
                " than --against, e.g. --fail-above 5%; with 5 where nothing can be told, since"
                " other work ran or there are too few rounds."
            )
        ),
    ] = None
    show: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measure nothing: show saved results, the first being compared with, e.g. --show"
            " a.json --show b.json.",
        ),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Save the result, every sample in it, e.g. --out main.json.")
    ] = None
    csv: Annotated[
        Path | None, typer.Option(help="Save each step as a row, e.g. --csv steps.csv.")
    ] = None
    png: Annotated[
        Path | None,
        typer.Option(help="Save a picture of the steps' times and rates, e.g. --png bench.png."),
    ] = None

    def bound(self) -> float | None:
        """The share of --fail-above. Raises `SpecError`."""
        if self.fail_above is None:
            return None
        found = _PERCENT.fullmatch(self.fail_above.strip())
        if found is None:
            raise SpecError(f"--fail-above {self.fail_above}: a percentage, such as 5%")
        return float(found.group(1)) / 100

    def check(self, targets: Sequence[str], *, one: bool) -> None:
        """Raise `SpecError` for options that do not go together; `one` thing alone is measured."""
        bound = self.bound()
        if self.show and targets:
            raise SpecError("--show measures nothing; leave the targets out, or it")
        if self.show and self.against is not None:
            raise SpecError("--show compares with its first file; name that of --against first")
        alone = one and self.against is None
        if bound is not None and (alone or (self.show and len(self.show) == 1)):
            raise SpecError(
                "--fail-above: there is nothing to compare with; name a second target, or a saved"
                " result with --against"
            )

    @property
    def saved(self) -> Path | None:
        """The saved result of --against; None where it names a commit, or is not given."""
        return Path(self.against) if self.against is not None and self._is_file else None

    @property
    def _is_file(self) -> bool:
        text = self.against or ""
        return os.path.lexists(text) or text.endswith(".json")

    @contextlib.contextmanager
    def earlier(
        self, targets: Sequence[str], plugins: Sequence[Path] | None
    ) -> Iterator[tuple[Sequence[str], dict[str, str]]]:
        """(the targets, before them that of another commit; the plugins of that). Raises
        `SpecError`.
        """
        if self.against is None or self._is_file:
            yield targets, {}
            return
        from bigmodel_cli.bench.earlier import at_ref

        if not targets:
            raise SpecError(f"--against {self.against}: no such file; of a commit, name the spec")
        with at_ref(self.against, targets[0], plugins or ()) as found:
            yield [found.target, *targets], {found.target: found.plugins}

    def save(self, result: Result) -> None:
        """Write the files that are asked for."""
        from bigmodel_cli.bench.picture import draw
        from bigmodel_cli.bench.saved import write, write_csv

        if self.out is not None:
            write(result, self.out)
        if self.csv is not None:
            write_csv(result, self.csv)
        if self.png is not None:
            draw(result, self.png)

    def fail(self, result: Result) -> None:
        """Raise `Regression` where a verdict is beyond the bound."""
        bound = self.bound()
        if bound is None:
            return
        unknown = [m.facts.name for m in result.measured if m.verdict and not m.verdict.told]
        slower = [
            f"{m.facts.name} takes {100 * m.verdict.change:.1f} % longer"
            for m in result.measured
            if m.verdict is not None and m.verdict.says == "slower" and m.verdict.change > bound
        ]
        if slower:
            raise Regression(f"{'; '.join(slower)}, more than --fail-above {self.fail_above}")
        if unknown:
            raise ResourceError(
                f"--fail-above {self.fail_above}: nothing can be told of {', '.join(unknown)}:"
                " other work ran, or there were too few rounds; run it alone, or for longer"
                " (--seconds)"
            )
