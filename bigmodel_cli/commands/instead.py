"""What `bigmodel attend` measures in the place of a look: --ablate, --diff and --over."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.views import ABLATE, DIFF, OVER
from bigmodel_cli.console import result, result_json, say
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.attend import Request
    from bigmodel_cli.attend.course import Course
    from bigmodel_cli.attend.several import Inputs
    from bigmodel_cli.commands.given import Given


@dataclass(frozen=True)
class InsteadOptions:
    """What is measured in the place of a look."""

    ablate: Annotated[
        str | None,
        typer.Option(
            help=(
                "What heads are worth: cut out all in turn (auto), or these, e.g. --ablate 0.2,3.1;"
                " experts: all of them, or these, e.g. --ablate 0.e3."
            )
        ),
    ] = None
    ablate_with: Annotated[
        str | None,
        typer.Option(
            help=(
                "What takes their place: zeros, or mean (over the input's positions), e.g."
                " --ablate-with mean. [default: zeros]"
            )
        ),
    ] = None
    diff: Annotated[
        str | None,
        typer.Option(
            help="A second checkpoint: which heads are apart, e.g. --diff runs/finetuned."
        ),
    ] = None
    over: Annotated[
        bool,
        typer.Option(
            "--over",
            help=(
                "The heads at each checkpoint that a run kept, on an INPUT or else on random tokens"
                " that come twice; CKPT is the run."
            ),
        ),
    ] = False

    def chosen(self) -> str | None:
        """The option that is given, if any. Raises `SpecError` for what it does not take."""
        if self.ablate_with is not None and self.ablate is None:
            raise SpecError("--ablate-with goes with --ablate; give both, or neither")
        if self.diff is not None and not self.diff.strip():
            raise SpecError("--diff is empty; name a second checkpoint")
        if self.ablate_with not in (None, "zeros", "mean"):
            raise SpecError(f"--ablate-with {self.ablate_with}: zeros or mean")
        asked = {ABLATE: self.ablate is not None, DIFF: self.diff is not None, OVER: self.over}
        return next((view for view, there in asked.items() if there), None)


@dataclass
class Measured:
    """What is found of each input, as text and as values, and the files that were written."""

    texts: list[str] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def measure(
    path: Path,
    given: Given,
    request: Request,
    instead: InsteadOptions,
    device: str,
    *,
    only_ascii: bool,
    json: bool,
) -> None:
    """What heads are worth, how far those of two checkpoints are apart, or how they came to be.

    Inputs that cannot be read are left out; at the end `DataError` says which.
    """
    from bigmodel_cli.attend.terminal import in_ascii

    found = Measured()
    if instead.over:
        plain = only_ascii or not (sys.stdout.encoding or "").lower().startswith("utf")
        inputs = _over(path, given, request, device, plain, found)
    elif instead.diff is not None:
        inputs = _diff(path, Path(instead.diff), given, request, device, found)
    else:
        inputs = _worth(path, given, request, instead, device, found)
    files = {"files": [str(file) for file in found.files]} if found.files else {}
    if json and found.values:
        several = len(inputs.given) > 1 and instead.ablate is None
        own = {"inputs": found.values} if several else found.values[0]
        result_json({**own, **inputs.failures(), **files})
    elif found.files:
        result("\n".join(map(str, found.files)))
    elif found.texts:
        text = "\n\n".join(found.texts)
        result(in_ascii(text) if only_ascii else text)
    inputs.check()


def _over(
    path: Path, given: Given, request: Request, device: str, plain: bool, found: Measured
) -> Inputs:
    """The heads at each checkpoint of a run, on each input, or on random tokens that repeat."""
    from bigmodel_cli.attend import SHARP, numbered
    from bigmodel_cli.attend.over import OverOptions, over, saved
    from bigmodel_cli.attend.page_measured import page_of_course
    from bigmodel_cli.attend.picture import draw_course
    from bigmodel_cli.attend.several import Inputs
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.outputs import write_output

    options = OverOptions(rows=request.rows, maps=SHARP if request.html else 0)
    inputs = Inputs(given.words)
    if given.files:  # texts, or names of images: the model knows
        last = saved(path)[0][-1]
        inputs = Inputs(given.of(load_checkpoint(last, device, tell=lambda said: None)))
    courses: Iterable[tuple[int | None, Course]]
    if inputs.given:
        courses = inputs.each(
            lambda own, place: over(path, own, replace(options, place=place), device)
        )
    else:
        courses = [(None, over(path, None, options, device))]
    for number, course in courses:
        found.values.append(course.to_json())
        found.texts.append(course.to_text(plain))
        if request.html is not None:
            write_output(numbered(request.html, number), [page_of_course(course).encode()])
        for _, file in request.pictures:
            draw_course(course, numbered(file, number))
        found.files += request.files(number)
    return inputs


def _diff(
    path: Path, other: Path, given: Given, request: Request, device: str, found: Measured
) -> Inputs:
    """Two checkpoints on each input; pictures are of the differences of their weights."""
    from bigmodel_cli.attend import SHARP, numbered
    from bigmodel_cli.attend.diff import DiffOptions, diff
    from bigmodel_cli.attend.layers import Wanted
    from bigmodel_cli.attend.looking import look_at
    from bigmodel_cli.attend.page_measured import page_of_apart
    from bigmodel_cli.attend.picture import draw_apart
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.outputs import write_output

    second = load_checkpoint(other, device)
    first = load_checkpoint(path, device)
    inputs = _some(given.of(first), DIFF)
    drawn = bool(request.pictures) or request.html is not None
    options = DiffOptions(SHARP if drawn else 0, request.target)
    for number, apart in inputs.each(lambda own, place: diff(first, second, own, options, place)):
        given_input = inputs.given[(number or 1) - 1]
        text = apart.to_text()
        found.values.append(apart.to_json())
        found.texts.append(text)
        if request.html is not None:
            names = look_at(first, given_input, Wanted(resolution=1), target=request.target)
            write_output(numbered(request.html, number), [page_of_apart(apart, names).encode()])
        for _, file in request.pictures:
            draw_apart(apart, numbered(file, number))
        if drawn:
            say(" ".join(apart.heading()))
        found.files += request.files(number)
    return inputs


def _worth(
    path: Path,
    given: Given,
    request: Request,
    instead: InsteadOptions,
    device: str,
    found: Measured,
) -> Inputs:
    """What heads are worth over all inputs, beside their statistics on the first."""
    from bigmodel_cli.attend import SHARP
    from bigmodel_cli.attend.cutting import AblateOptions, ablate
    from bigmodel_cli.attend.details import MOST_ENTRIES
    from bigmodel_cli.attend.judging import check_foretold, read_alone
    from bigmodel_cli.attend.layers import Wanted
    from bigmodel_cli.attend.looking import look_at
    from bigmodel_cli.attend.page_measured import page_of_worth
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.outputs import write_output

    loaded = load_checkpoint(path, device)
    inputs = _some(given.of(loaded), ABLATE)
    layers = request.wanted(False).layers
    options = AblateOptions(
        instead.ablate or "",
        instead.ablate_with == "mean",
        None if layers is None else list(layers),
        request.target,
    )

    def readable(own: str, place: str) -> str:
        check_foretold(loaded, read_alone(loaded, own, place), place)
        return own

    readables = [own for _, own in inputs.each(readable)]
    if readables:
        wanted = Wanted(resolution=1)
        if request.html is not None:
            wanted = Wanted(resolution=SHARP, whole=MOST_ENTRIES)
        look = look_at(loaded, readables[0], wanted, target=request.target)
        worth = ablate(loaded, readables, options, look)
        if request.html is not None:
            write_output(request.html, [page_of_worth(worth, look).encode()])
            found.files.append(request.html)
        found.values.append(worth.to_json())
        found.texts.append(worth.to_text())
    return inputs


def _some(given: list[str], view: str) -> Inputs:
    """The inputs. Raises `SpecError` where there is none."""
    from bigmodel_cli.attend.several import Inputs

    if not given:
        raise SpecError(f"{view}: there is no input; give a text, or the path of an image")
    return Inputs(given)
