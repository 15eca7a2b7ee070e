"""`bigmodel attend`: what is looked at, and in which forms it is shown."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.instead import InsteadOptions, measure
from bigmodel_cli.commands.shared import (
    Checkpoint,
    Device,
    Json,
    Plugin,
    resolve_checkpoint,
    with_a_first,
)
from bigmodel_cli.console import result, result_json, say
from bigmodel_cli.errors import DataError, SpecError

if TYPE_CHECKING:
    from bigmodel_cli.attend import Request
    from bigmodel_cli.attend.look import Look
    from bigmodel_cli.loaded import Loaded


@dataclass(frozen=True)
class WhatOptions:
    """What is looked at."""

    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="A text's file, read as one input, e.g. --file book.txt; - is stdin as a whole."
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


@dataclass(frozen=True)
class FormOptions:
    """In which forms it is shown."""

    png: Annotated[Path | None, typer.Option(help="A picture, e.g. --png heads.png.")] = None
    pdf: Annotated[Path | None, typer.Option(help="The same as PDF, e.g. --pdf heads.pdf.")] = None
    svg: Annotated[Path | None, typer.Option(help="The same as SVG, e.g. --svg heads.svg.")] = None
    html: Annotated[
        Path | None,
        typer.Option(help="A page to look around in, in one file, e.g. --html heads.html."),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help=("All weights and statistics, .safetensors or .jsonl, e.g. --data heads.jsonl.")
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
            metavar="[INPUT ...]",
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
    from bigmodel_cli.loaded import load_checkpoint

    for option, present in FORMER.items():
        if getattr(form, option.removeprefix("--")) is not None:
            raise SpecError(f"{option}: it is called {present} now")
    request = _request(what, form)
    request.check()
    path = resolve_checkpoint(checkpoint, with_inputs=True)
    if (chosen := instead.chosen()) is not None:
        own = _inputs(inputs, what.file, from_stdin=chosen != "--over")
        measure(path, own, request, instead, device, only_ascii=form.only_ascii, json=json)
        return
    given = _inputs(inputs, what.file)
    loaded = load_checkpoint(path, device, body=True)  # heads look without one that answers
    _check_files(loaded, what.file or [])
    _warn_of_files(loaded, inputs or [])
    looks: list[Look] = []
    written: list[Path] = []
    try:
        for look, files in look_at_each(loaded, given, request):
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
            result_json(values(looks, written, len(given) > 1))


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
        "target",
        "cam",
        "cam_layer",
        "named",
    )
    return Request(
        **{name: getattr(what, name) for name in same},
        pictures=tuple((name, path) for name, path in named.items() if path is not None),
        html=form.html,
        data=form.data,
    )


def _inputs(
    given: list[str] | None, files: list[Path] | None, *, from_stdin: bool = True
) -> list[str]:
    """All inputs: those named, texts of files, or else the lines of stdin."""
    from bigmodel_cli.data import lines_of

    texts = [_text_of(path) for path in files or []]
    named = [*(given or []), *texts]
    return named or (list(with_a_first(lines_of(sys.stdin.buffer))) if from_stdin else [])


def _text_of(path: Path) -> str:
    """A file as one text; bytes that are not UTF-8 are for the reader to complain of."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"--file: {path}: cannot be read: {error.strerror}") from None
    return content.decode("utf-8", "surrogateescape")


def _check_files(loaded: Loaded, files: list[Path]) -> None:
    """Raise `SpecError` where texts are given to a model of images or recordings."""
    from bigmodel_cli.data import input_of

    if files and input_of(loaded.info).in_files:
        raise SpecError(
            f"--file is for models of texts; name the file alone: {shlex.quote(str(files[0]))}"
        )


def _warn_of_files(loaded: Loaded, inputs: list[str]) -> None:
    """A model of texts reads the words themselves."""
    from bigmodel_cli.data import input_of

    first = next((given for given in inputs if os.path.isfile(given)), None)
    if first is not None and not input_of(loaded.info).in_files:
        say(
            f"warning: {first} names a file, and this model reads the words themselves; for its"
            f" text: --file {shlex.quote(first)}"
        )
