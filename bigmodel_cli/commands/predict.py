"""`bigmodel predict`: what is read, and how text is written."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.processes import SharedInputs, check_processes, start_processes
from bigmodel_cli.commands.shared import (
    Checkpoint,
    Device,
    Plugin,
    Set,
    refuse,
    resolve_checkpoint,
    with_a_first,
)
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.generation.text import Decoding

MOST_BEAMS = 1000
"""The same as for `task.beams`."""
MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class DecodingOptions:
    """How text is written: the fields of `bigmodel_cli.generation.text.Decoding`."""

    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            help=(
                "Most tokens to generate, e.g. --max-tokens 50. [default: 200 for a decoder; for an"
                " encoder-decoder the task's, or its context]"
            ),
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=(
                "0 is greedy, e.g. --temperature 0.8. [default: 0.8 for a decoder, and where"
                " --top-k, --top-p or --min-p are given; an encoder-decoder searches otherwise]"
            ),
        ),
    ] = None
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Sample from the k most likely tokens; 0: all, e.g. --top-k 50."),
    ] = 0
    top_p: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1,
            help=(
                "Sample from the most likely tokens with this total probability, e.g. --top-p 0.9."
            ),
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help=(
                "Sample from tokens with at least this share of the highest probability, e.g."
                " --min-p 0.05."
            ),
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Above 1, earlier tokens become less likely, e.g. --repetition-penalty 1.2.",
        ),
    ] = 1.0
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_BEAMS,
            help=(
                "Beam width of the search, e.g. --beams 5; 1 is greedy. [default: as the task says]"
            ),
        ),
    ] = None
    length_penalty: Annotated[
        float | None,
        typer.Option(
            min=0, help="Length-penalty exponent of beam search, e.g. 0.6. [default: the task's]"
        ),
    ] = None
    n_best: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_BEAMS, help="Hypotheses shown for each input, e.g. --n-best 3."
        ),
    ] = 1
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling, e.g. --seed 1.")] = 0


Top = Annotated[
    int | None, typer.Option(min=1, help="Labels shown for each item, e.g. --top 5. [default: 3]")
]
Embed = Annotated[
    bool,
    typer.Option(
        "--embed",
        help=(
            "Print a vector for each text instead of labels: of an encoder, as its folder says"
            " (1_Pooling, modules.json), else as model.pool does."
        ),
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help=(
            "Answer each input, a question or a JSON list of messages, as the checkpoint's chat"
            " template asks."
        ),
    ),
]
AsLines = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON Lines on a terminal too, where a continued text is printed as text.",
    ),
]


@fields_as_options
def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help=(
                "Images, recordings, prompts or texts; when left out the lines of stdin, each with"
                " a record of its own."
            ),
        ),
    ] = None,
    *,
    decoding: DecodingOptions,
    top: Top = None,
    embed: Embed = False,
    chat: Chat = False,
    set_: Set = None,
    device: Device = "auto",
    plugin: Plugin = None,
    processes: SharedInputs = None,
    json: AsLines = False,
) -> None:
    """Classify, tag or transcribe inputs, continue texts, or translate; JSON Lines out, in input
    order.

    On a terminal a continued text is printed as it is generated.

    Example: bigmodel predict runs/mnist_cnn seven.png, or: ls *.png | bigmodel predict
    runs/mnist_cnn
    """
    from bigmodel_cli.distributed import announced, peers
    from bigmodel_cli.evaluation.several import several
    from bigmodel_cli.generation.batches import shared
    from bigmodel_cli.generation.text import Decoding

    how = Decoding(**vars(decoding))
    if embed:
        refuse("--embed", {"--top": top, "--chat": chat, **dict.fromkeys(how.given()[:1], True)})
    piped = checkpoint == "-"
    check_processes(processes, 0, {"-": piped and processes is None})
    if processes is not None and processes > 1:
        if not inputs and sys.stdin.isatty():
            raise SpecError("--processes: give the inputs as arguments, or in a pipe or a file (<)")
        if not inputs and piped:
            raise SpecError(
                "--processes: '-' and the inputs cannot both come on stdin; name the checkpoint"
            )
        source = str(resolve_checkpoint("-", with_inputs=True)) if piped else None
        start_processes(processes, 0, source, reads=not inputs)
    path = resolve_checkpoint(checkpoint, with_inputs=True)
    word = "input" if inputs else "line"
    with several(device, tensors=False) as own, shared(peers()):
        given = (inputs or _lines()) if announced().first else ()
        if embed:
            _print_vectors(path, own, set_, given, word)
        else:
            _print_answers(path, own, set_, given, how, top, word, chat=chat, json=json)


def _lines() -> Iterable[str]:
    """Those of stdin."""
    from bigmodel_cli.data import lines_of

    return with_a_first(lines_of(sys.stdin.buffer))


def _print_answers(
    path: Path,
    device: str,
    changes: list[str] | None,
    given: Iterable[str],
    how: Decoding,
    top: int | None,
    word: str,
    *,
    chat: bool,
    json: bool,
) -> None:
    """A record for each input; a text that one process continues on a terminal as it is written."""
    from contextlib import closing

    from bigmodel_cli.console import has_colour, result_record
    from bigmodel_cli.distributed import announced
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.predict import TextPrinter, as_published, continues
    from bigmodel_cli.predict import predict as records_of

    loaded = load_checkpoint(path, device, changes or ())
    how = as_published(loaded, how)
    if json or not sys.stdout.isatty() or not continues(loaded):
        for record in records_of(loaded, given, how, top, word, chat=chat):
            result_record(record)
        return
    with closing(TextPrinter(has_colour(sys.stdout))) as printer:
        tell = printer.tell if announced().alone else None
        for record in records_of(loaded, given, how, top, word, tell, chat=chat):
            printer.record(record)


def _print_vectors(
    path: Path, device: str, changes: list[str] | None, given: Iterable[str], word: str
) -> None:
    """A record with a vector for each text."""
    from bigmodel_cli.console import result_record
    from bigmodel_cli.embed import embed
    from bigmodel_cli.loaded import load_checkpoint

    loaded = load_checkpoint(path, device, changes or (), body=True)
    for record in embed(loaded, given, word):
        result_record(record)
