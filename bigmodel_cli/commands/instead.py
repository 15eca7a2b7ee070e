"""What `bigmodel attend` measures in the place of a look: --ablate, --diff and --over."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.shared import refuse
from bigmodel_cli.console import result, result_json, say
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.attend import Request
    from bigmodel_cli.loaded import Loaded


@dataclass(frozen=True)
class InsteadOptions:
    """What is measured in the place of a look."""

    ablate: Annotated[
        str | None,
        typer.Option(
            help=(
                "What heads are worth: cut out all in turn (auto), or these, e.g. --ablate 0.2,3.1."
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
        """The option that is given, if any. Raises `SpecError` for several."""
        given = [n for n in ("ablate", "diff", "over") if getattr(self, n) not in (None, False)]
        if len(given) > 1:
            raise SpecError(f"--{given[0]} and --{given[1]} exclude one another; give one of them")
        if self.ablate_with is not None and given != ["ablate"]:
            raise SpecError("--ablate-with goes with --ablate; give both, or neither")
        if self.ablate_with not in (None, "zeros", "mean"):
            raise SpecError(f"--ablate-with {self.ablate_with}: zeros or mean")
        return f"--{given[0]}" if given else None


def measure(
    path: Path,
    inputs: list[str],
    request: Request,
    instead: InsteadOptions,
    device: str,
    *,
    only_ascii: bool,
    json: bool,
) -> None:
    """What heads are worth, how far those of two checkpoints are apart, or how they came to be."""
    from bigmodel_cli.attend import SHARP
    from bigmodel_cli.attend.over import OverOptions, over
    from bigmodel_cli.attend.page_measured import page_of_course
    from bigmodel_cli.attend.picture import draw_course
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.outputs import write_output

    where = instead.chosen()
    assert where is not None
    _refuse_others(where, request)
    written: list[Path] = []
    text: str | None = None
    if instead.over:
        options = OverOptions(rows=request.rows, maps=SHARP if request.html else 0)
        course = over(path, _only(inputs, where), options, device)
        found: Any = course
        if request.html is not None:
            write_output(request.html, [page_of_course(course).encode()])
        for _, file in request.pictures:
            draw_course(course, file)
        written = list(request.files(None))
        text = course.to_text(
            only_ascii or not (sys.stdout.encoding or "").lower().startswith("utf")
        )
    elif instead.diff is not None:
        second = load_checkpoint(Path(instead.diff), device)
        found = _apart(load_checkpoint(path, device), second, inputs, request)
        written = list(request.files(None))
    else:
        found = _worth(load_checkpoint(path, device), inputs, request, instead)
        written = list(request.files(None))
    if json:
        files = {"files": [str(path) for path in written]} if written else {}
        result_json({**found.to_json(), **files})
    elif written:
        result("\n".join(map(str, written)))
    else:
        result(found.to_text() if text is None else text)


def _refuse_others(where: str, request: Request) -> None:
    """Raise `SpecError` for an option that this measurement does not take."""
    named = {f"--{name}": path for name, path in request.pictures} if where == "--ablate" else {}
    same = ("heads", "query", "key", "top", "cam", "cam_layer", "data")
    others = {f"--{name.replace('_', '-')}": getattr(request, name) for name in same}
    of_some = {
        "--class": request.named,
        "--lens": request.lens,
        "--rows": request.rows if where != "--over" else None,
        "--layers": request.layers if where != "--ablate" else None,
        "--target": request.target if where == "--over" else None,
    }
    refuse(where, {**named, **others, **of_some})


def _only(inputs: list[str], where: str) -> str | None:
    """The input, if there is one. Raises `SpecError` for several."""
    if len(inputs) > 1:
        raise SpecError(f"{where} takes one input, and {len(inputs)} are given")
    return inputs[0] if inputs else None


def _apart(first: Loaded, second: Loaded, inputs: list[str], request: Request) -> Any:
    """Two checkpoints on an input; pictures are of the differences of their weights."""
    from bigmodel_cli.attend import SHARP
    from bigmodel_cli.attend.diff import DiffOptions, diff
    from bigmodel_cli.attend.layers import Wanted
    from bigmodel_cli.attend.looking import look_at
    from bigmodel_cli.attend.page_measured import page_of_apart
    from bigmodel_cli.attend.picture import draw_apart
    from bigmodel_cli.outputs import write_output

    given = _only(inputs, "--diff")
    if given is None:
        raise SpecError("--diff: there is no input; give a text, or the path of an image")
    drawn = bool(request.pictures) or request.html is not None
    sharp = SHARP if drawn else 0
    found = diff(first, second, given, DiffOptions(sharp, request.target))
    if request.html is not None:
        names = look_at(first, given, Wanted(resolution=1), target=request.target)
        write_output(request.html, [page_of_apart(found, names).encode()])
    for _, file in request.pictures:
        draw_apart(found, file)
    if drawn:
        say(found.to_text().splitlines()[0])
    return found


def _worth(loaded: Loaded, inputs: list[str], request: Request, instead: InsteadOptions) -> Any:
    """What heads are worth, beside their statistics on the first input."""
    from bigmodel_cli.attend import SHARP
    from bigmodel_cli.attend.cutting import AblateOptions, ablate
    from bigmodel_cli.attend.details import MOST_ENTRIES
    from bigmodel_cli.attend.layers import Wanted
    from bigmodel_cli.attend.looking import look_at
    from bigmodel_cli.attend.page_measured import page_of_worth
    from bigmodel_cli.outputs import write_output

    if not inputs:
        raise SpecError("--ablate: there is no input; give a text, or the path of an image")
    chosen = request.wanted(False).layers
    options = AblateOptions(
        instead.ablate or "auto",
        instead.ablate_with == "mean",
        None if chosen is None else list(chosen),
        request.target,
    )
    wanted = Wanted(resolution=1)
    if request.html is not None:
        wanted = Wanted(resolution=SHARP, whole=MOST_ENTRIES)
    look = look_at(loaded, inputs[0], wanted, target=request.target)
    found = ablate(loaded, inputs, options, look)
    if request.html is not None:
        write_output(request.html, [page_of_worth(found, look).encode()])
    return found
