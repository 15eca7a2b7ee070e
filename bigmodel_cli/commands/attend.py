"""`bigmodel attend`: what is looked at, and in which forms it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.given import given_of
from bigmodel_cli.commands.instead import InsteadOptions, measure
from bigmodel_cli.commands.shared import (
    Checkpoint,
    Device,
    Json,
    Plugin,
    resolve_checkpoint,
)
from bigmodel_cli.commands.views import FORMS, OVER, VIEWS, check_view, summary, view_of
from bigmodel_cli.console import result, result_json, say
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.attend import Request
    from bigmodel_cli.attend.look import Look


@dataclass(frozen=True)
class WhatOptions:
    """What is looked at."""

    file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help=(
                "A file: a text, read as one input, an image or a recording, e.g. --file book.txt;"
                " - is a text on stdin."
            ),
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(help="Layers, of those that attend, e.g. --layers 0,3. [default: all]"),
    ] = None
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, as LAYER.HEAD, e.g. --heads 0.2,3.1. [default: all]"),
    ] = None
    query: Annotated[
        str | None,
        typer.Option(
            help=(
                "The position that reads, from the end where negative, or a patch, e.g. --query 5,"
                " --query 2,3. [default: the last; of an image the class token]"
            )
        ),
    ] = None
    key: Annotated[
        int | None,
        typer.Option(help="A position that is read: which queries read it, e.g. --key 0."),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Keys listed for each query, e.g. --top 5."),
    ] = None
    rows: Annotated[
        int | None,
        typer.Option(
            min=2,
            help=(
                "Queries that statistics are of, drawn evenly, with 95 % intervals, e.g. --rows"
                " 1024. [default: all]"
            ),
        ),
    ] = None
    lens: Annotated[
        bool,
        typer.Option(
            "--lens",
            help="What the model would answer from its stream after each block (logit lens).",
        ),
    ] = False
    rollout: Annotated[
        bool,
        typer.Option(
            "--rollout",
            help="What the query reads of a text through all layers: attention rollout.",
        ),
    ] = False
    target: Annotated[
        str | None,
        typer.Option(
            help=(
                "What an encoder-decoder is to write, e.g. --target 'ein Hund'. [default: what it"
                " writes]"
            )
        ),
    ] = None
    cam: Annotated[
        str | None,
        typer.Option(
            help="Grad-CAM of an image: gradcam, gradcam++ or hirescam, e.g. --cam hirescam."
        ),
    ] = None
    cam_layer: Annotated[
        str | None,
        typer.Option(
            help="The module whose map it is, e.g. --cam-layer layer3. [default: the last]"
        ),
    ] = None
    named: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="The class that is explained, e.g. --class cat. [default: the likeliest]",
        ),
    ] = None
    baseline: Annotated[
        str | None,
        typer.Option(
            help=(
                "What pixels are replaced by where a map is put to the test: mean (colour) or blur,"
                " e.g. --baseline blur. [default: mean]"
            )
        ),
    ] = None


@dataclass(frozen=True)
class FormOptions:
    """In which forms it is shown."""

    png: Annotated[
        Path | None,
        typer.Option(
            help=(
                "A picture: of a translation the alignment, of speech the words' times, else heads;"
                " with --layers, --heads, --query or --key these, e.g. --png heads.png."
            )
        ),
    ] = None
    pdf: Annotated[Path | None, typer.Option(help="The same as PDF, e.g. --pdf heads.pdf.")] = None
    svg: Annotated[Path | None, typer.Option(help="The same as SVG, e.g. --svg heads.svg.")] = None
    html: Annotated[
        Path | None,
        typer.Option(
            help="Any view as a page to look around in, in one file, e.g. --html heads.html."
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help=(
                "All weights and statistics, and an image's map, .safetensors or .jsonl, e.g."
                " --data heads.jsonl."
            )
        ),
    ] = None
    only_ascii: Annotated[
        bool, typer.Option("--ascii", help="Use neither colours nor characters beyond ASCII.")
    ] = False
    out: Annotated[Path | None, typer.Option(hidden=True, help="Formerly a picture.")] = None
    layer: Annotated[str | None, typer.Option(hidden=True, help="Formerly a layer.")] = None
    head: Annotated[str | None, typer.Option(hidden=True, help="Formerly a head.")] = None


FORMER = {"--out": "--png, --pdf or --svg", "--layer": "--layers", "--head": "--heads LAYER.HEAD"}
"""Options of earlier versions -> what they are called now."""


@fields_as_options
def attend(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Texts, or paths of images or recordings; lines of stdin when left out.",
        ),
    ] = None,
    *,
    what: WhatOptions,
    instead: InsteadOptions,
    form: FormOptions,
    device: Device = "auto",
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Show what each attention head looks at, and which region decides an image's class: in the
    terminal, or as files, whose paths are printed.

    Example: bigmodel attend runs/quickstart "def main(argv):"
    """
    from bigmodel_cli.attend import attend as look_at_each
    from bigmodel_cli.attend import screen, values
    from bigmodel_cli.attend.several import Inputs
    from bigmodel_cli.loaded import load_checkpoint

    for option, present in FORMER.items():
        if getattr(form, option.removeprefix("--")) is not None:
            raise SpecError(f"{option}: it is called {present} now")
    measured = instead.chosen() is not None
    view = _checked(what, instead, form, json=json)
    request = _request(what, form)
    request.check()
    path = resolve_checkpoint(checkpoint, with_inputs=True)
    given = given_of(inputs, what.file, from_stdin=view != OVER)
    if measured:
        measure(path, given, request, instead, device, only_ascii=form.only_ascii, json=json)
        return
    loaded = load_checkpoint(path, device, body=True)  # heads look without one that answers
    each = Inputs(given.of(loaded))
    looks: list[Look] = []
    written: list[Path] = []
    try:
        for look, files in look_at_each(loaded, each, request):
            looks.append(look)
            written += files
            for note in look.notes if files or json else ():
                say(note)
            if files and not json:
                result("\n".join(map(str, files)))
            elif not json:
                result(screen(look, form.only_ascii), styled=True)
    finally:
        if json and looks:
            result_json(values(looks, written, each))


attend.__doc__ = f"{attend.__doc__}\n    {summary()}\n"


def _checked(what: WhatOptions, instead: InsteadOptions, form: FormOptions, *, json: bool) -> str:
    """The view that is asked for. Raises `SpecError` for what has no effect on it."""
    every = {**vars(what), **vars(instead), **vars(form), "json": json}
    every |= {"class": every.pop("named"), "ascii": every.pop("only_ascii")}
    given = {
        f"--{name.replace('_', '-')}": value is not None and value is not False
        for name, value in every.items()
    }
    view = view_of([option for option, there in given.items() if there])
    forms = [option for option in FORMS if given.get(option)]
    rest = {o: there for o, there in given.items() if o not in (*FORMS, *VIEWS, "--file")}
    check_view(view, forms or ["terminal"], rest)
    return view


def _request(what: WhatOptions, form: FormOptions) -> Request:
    from bigmodel_cli.attend import Request

    named = {"png": form.png, "pdf": form.pdf, "svg": form.svg}
    same = (
        "layers",
        "heads",
        "query",
        "key",
        "top",
        "rows",
        "lens",
        "rollout",
        "target",
        "cam",
        "cam_layer",
        "named",
        "baseline",
    )
    return Request(
        **{name: getattr(what, name) for name in same},
        pictures=tuple((name, path) for name, path in named.items() if path is not None),
        html=form.html,
        data=form.data,
    )
