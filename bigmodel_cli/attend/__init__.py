"""`bigmodel attend`: what a model looks at, head by head, and where an image's class comes from."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.data import check_data, values_of, write_data
from bigmodel_cli.attend.details import MOST_ENTRIES, Details
from bigmodel_cli.attend.images import ImageOptions
from bigmodel_cli.attend.layers import Wanted
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.looking import NO_PATCHES, look_at
from bigmodel_cli.attend.page import page
from bigmodel_cli.attend.picture import PictureOptions, draw
from bigmodel_cli.attend.several import Inputs
from bigmodel_cli.attend.telling import telling
from bigmodel_cli.attend.terminal import show, style_of
from bigmodel_cli.data import input_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.outputs import check_output, write_output
from bigmodel_cli.pictures import check_picture

SCREEN = (100, 40)
"""Columns and lines where stdout is not a terminal."""
SHARP = 1024
"""Blocks to a map's side in a picture or a page."""
SAMPLED = 64
"""Queries whose figures are made again where only tensors are asked for."""
READ = 8
"""Heaviest keys of each query that a page lists."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    `layers` is "0,3", `heads` "0.2,3.1", `query` a position or a patch "ROW,COLUMN"; `pictures` are
    files by option (--png, --pdf, --svg), `html` and `data` files.
    """

    layers: str | None = None
    heads: str | None = None
    query: str | None = None
    key: int | None = None
    top: int | None = None
    rows: int | None = None
    lens: bool = False
    rollout: bool = False
    target: str | None = None
    cam: str | None = None
    cam_layer: str | None = None
    named: str | None = None
    baseline: str | None = None
    pictures: tuple[tuple[str, Path], ...] = ()
    html: Path | None = None
    data: Path | None = None

    def check(self) -> None:
        """Raise for what cannot be meant, or files that could not be written, before the work."""
        wanted = self.wanted(False)
        for layer, head in wanted.heads:
            if not wanted.has(layer):
                raise SpecError(
                    f"--heads {layer}.{head}: --layers {self.layers} leaves layer {layer} out; give"
                    " one of the two"
                )
        for option, path in self.pictures:
            if path.suffix.lower() != f".{option}":
                raise SpecError(f"--{option}: {path}: the name must end in .{option}")
            check_picture(path, f"--{option}")
        if self.html is not None:
            check_output(self.html, "--html")
        if self.data is not None:
            check_data(self.data)

    def wanted(self, patches: bool) -> Wanted:
        """What is asked of a look; of `patches` the query is the images' own option."""
        files = bool(self.pictures) or self.html is not None
        query = -1 if self.query is None or patches or "," in self.query else self._place()
        return Wanted(
            layers=None if self.layers is None else _numbers(self.layers),
            heads=() if self.heads is None else _heads(self.heads),
            query=query,
            key=self.key,
            top=self.top or (READ if self.html is not None else 0),
            rows=self.rows,
            lens=self.lens,
            rollout=self.rollout,
            resolution=SHARP if files else 128,
            dense=self.data is not None,
            whole=0 if self.html is None else MOST_ENTRIES,
        )

    def image(self) -> ImageOptions:
        """The options of images."""
        return ImageOptions(self.cam, self.cam_layer, self.named, self.query, self.baseline)

    def files(self, number: int | None) -> Iterator[Path]:
        """All files that are asked for, of the input of this number."""
        yield from (numbered(path, number) for _, path in self.pictures)
        others = (path for path in (self.html, self.data) if path is not None)
        yield from (numbered(path, number) for path in others)

    def _place(self) -> int:
        try:
            return int(self.query or "-1")
        except ValueError:
            raise SpecError(f"--query {self.query}: a position is a whole number") from None


def attend(loaded: Loaded, inputs: Inputs, request: Request) -> Iterator[tuple[Look, list[Path]]]:
    """A look at each input, and the files that were written of it, numbered as the inputs are.

    An input that cannot be read is left out; at the end `DataError` says which.
    """
    patches = input_of(loaded.info).one_size
    if request.query is not None and "," in request.query and not patches:
        raise SpecError(
            f"--query {request.query}: ROW,COLUMN is a patch of an image; give a number"
        )
    if request.top is not None and patches and loaded.model.grid is None:
        raise SpecError(NO_PATCHES)
    wanted, image = request.wanted(patches), request.image()

    def work(given: str, place: str) -> tuple[Look, Details | None]:
        again = partial(look_at, loaded, given, place=place, target=request.target, image=image)
        look = again(wanted)
        return look, None if request.html is None else _details(look, wanted, again)

    for number, (look, details) in inputs.each(work):
        write_files(look, request, number, details)
        yield look, list(request.files(number))
    inputs.check()


def _details(look: Look, wanted: Wanted, again: Callable[[Wanted], Look]) -> Details:
    """What a page carries; of a long input the most telling heads, for which it is run again."""
    details = Details.of(look)
    if wanted.heads or any(details.found.values()):
        return details
    told = [(look.layers[one.layer], one) for one in telling(look)]
    heads = tuple((one.layer if la.number is None else la.number, one.head) for la, one in told)
    if not heads:
        return details
    return Details.of(again(replace(wanted, layers=None, heads=heads, rows=SAMPLED, resolution=1)))


def write_files(
    look: Look, request: Request, number: int | None, details: Details | None = None
) -> None:
    """Write what is asked for; `number` is put into the names."""
    places = {layer.number: place for place, layer in enumerate(look.layers)}
    heads = None
    if request.heads is not None:
        heads = [(places[layer], head) for layer, head in _heads(request.heads)]
    for _, name in request.pictures:
        chosen = (request.layers, request.heads, request.query, request.key)
        options = PictureOptions(
            heads=heads,
            query=request.query is not None,
            key=request.key is not None,
            told=all(choice is None for choice in chosen),
            lens=request.lens,
        )
        draw(look, numbered(name, number), options)
    if request.html is not None:
        write_output(numbered(request.html, number), [page(look, details).encode()])
    if request.data is not None:
        write_data(look, numbered(request.data, number))


def numbered(path: Path, number: int | None) -> Path:
    """A file's name, for the input of this number: heads.png, heads-2.png."""
    return path if number is None else path.with_name(f"{path.stem}-{number}{path.suffix}")


def screen(look: Look, only_ascii: bool = False) -> str:
    """The view of a terminal, as large as stdout's."""
    size = shutil.get_terminal_size(SCREEN) if sys.stdout.isatty() else SCREEN
    return show(look, size[0], size[1], style_of(sys.stdout, only_ascii))


def values(looks: Sequence[Look], files: Sequence[Path], inputs: Inputs) -> dict[str, Any]:
    """The looks as plain values: of one input at the top, of several in a list, beside those that
    could not be read.
    """
    written = {"files": [str(path) for path in files]} if files else {}
    if len(inputs.given) == 1:
        return {**values_of(looks[0]), **written}
    return {"inputs": [values_of(look) for look in looks], **inputs.failures(), **written}


def _numbers(given: str) -> tuple[int, ...]:
    """ "0,3" as numbers."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", given):
        raise SpecError(f"--layers {given}: give numbers with commas between: 0,3")
    return tuple(map(int, given.split(",")))


def _heads(given: str) -> tuple[tuple[int, int], ...]:
    """ "0.2,3.1" as pairs."""
    if not re.fullmatch(r"\d{1,9}\.\d{1,9}(,\d{1,9}\.\d{1,9})*", given):
        raise SpecError(
            f"--heads {given or repr(given)}: give LAYER.HEAD with commas between: 0.2,3.1"
        )
    pairs = (each.split(".") for each in given.split(","))
    return tuple(dict.fromkeys((int(layer), int(head)) for layer, head in pairs))
