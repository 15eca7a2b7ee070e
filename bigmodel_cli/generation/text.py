"""Generated texts: continuations of prompts, and targets of sources."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.console import counted, say
from bigmodel_cli.data import (
    BUILT_IN,
    AnyDataOptions,
    Dialogues,
    Item,
    Prompts,
    Reader,
    Template,
    Tokenizer,
    Turns,
    find_template,
    load_tokenizer,
)
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import SpecError
from bigmodel_cli.generation.batches import in_order
from bigmodel_cli.generation.beam import beam_search
from bigmodel_cli.generation.conditioned import (
    begun,
    rows_at_once,
    source_reader,
    target_begins,
)
from bigmodel_cli.generation.decoding import DRAWN, Decoding
from bigmodel_cli.generation.excluding import Excluding
from bigmodel_cli.generation.pieces import Pieces, added_text
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Generator, Model

__all__ = [
    "Decoding",
    "answer_questions",
    "continue_texts",
    "generate_from_source",
    "longest_text",
    "stream_text",
]


CONTINUED = 200
"""The default number of tokens that a decoder adds."""


Told = Callable[[str, str], None]
"""Called with an input and the next piece of its text."""


def continue_texts(
    loaded: Loaded,
    prompts: Iterable[str],
    decoding: Decoding,
    word: str = "input",
    tell: Told | None = None,
) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each prompt; "text" is the continuation.

    Without a search, `tell` gets the text of a prompt that is alone in its batch as it is
    generated.
    """
    tokenizer = load_tokenizer(loaded.assets)
    reader = Prompts(tokenizer, loaded.model.limit, loaded.spec.data)
    return _continued(loaded, reader, prompts, decoding, tokenizer.stops, word, tell)


def answer_questions(
    loaded: Loaded,
    questions: Iterable[str],
    decoding: Decoding,
    word: str = "input",
    tell: Told | None = None,
) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each question or conversation; "text" is the answer.

    The conversation is written as the checkpoint's chat template has it, and the answer ends where
    the template ends one.
    """
    tokenizer = load_tokenizer(loaded.assets)
    text, name = find_template(None, loaded.assets)
    if name == BUILT_IN:
        say("the checkpoint has no chat template; a plain one is used")
    with Template(text, tokenizer, name) as template:
        turns = Turns(tokenizer, template)
        stops = tuple({*tokenizer.stops, turns.end()})
        reader = Dialogues(turns, loaded.model.limit)
        yield from _continued(loaded, reader, questions, decoding, stops, word, tell)


def _continued(
    loaded: Loaded,
    reader: Reader,
    prompts: Iterable[str],
    decoding: Decoding,
    stops: tuple[int, ...],
    word: str,
    tell: Told | None,
) -> Iterator[dict[str, Any]]:
    """The records of `continue_texts`, for what a reader makes of the prompts."""
    tokenizer = load_tokenizer(loaded.assets)
    most = decoding.max_tokens or CONTINUED

    def answer(items: list[Item], batch: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        numbers = [item.number for item in items]
        real = None if bool(batch["real"].all()) else batch["real"]
        watch = None
        if tell is not None and len(items) == 1:
            pieces = Pieces(tokenizer, items[0].content)
            watch = lambda token: tell(items[0].given, pieces.add(token))  # noqa: E731
        model, tokens = Excluding(loaded.model.generator(), tokenizer.never), batch["tokens"]
        written = write(loaded, model, tokens, decoding, numbers, most, stops, DRAWN, real, watch)
        return _records(written, tokenizer, decoding, [item.content for item in items])

    return in_order(reader, prompts, answer, loaded.device, word)


def generate_from_source(
    loaded: Loaded,
    sources: Iterable[str],
    decoding: Decoding,
    word: str = "input",
    reader: Reader | None = None,
) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each source; "text" is the target, "unfinished" if it has no end.

    The `reader` is that of the model's sources when left out. At the end the number of unfinished
    texts is reported.
    """
    tokenizer, model = load_tokenizer(loaded.assets), loaded.model
    first, most = target_begins(loaded, tokenizer), longest_text(loaded, decoding)
    total, unfinished = 0, 0

    def answer(items: list[Item], batch: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        with autocast(loaded.device, loaded.precision):
            reading = Excluding(
                model.generator(*model.source(batch)), tokenizer.never, tokenizer.never_first
            )
            start = begun(reading.model, first, len(items), tokenizer.languages, loaded.device)
        numbers = [item.number for item in items]
        stops = tokenizer.stops
        written = write(loaded, reading, start, decoding, numbers, most, stops, 0.0, None)
        return _records(written, tokenizer, decoding)

    reader = source_reader(loaded) if reader is None else reader
    try:
        for record in in_order(reader, sources, answer, loaded.device, word, rows_at_once(loaded)):
            total, unfinished = total + 1, unfinished + ("unfinished" in record)
            yield record
    finally:
        if unfinished:
            say(
                f"{unfinished:,} of {counted(total, 'text has', 'texts have')} not ended after"
                f" {most:,} tokens, the most that are written"
            )


def longest_text(loaded: Loaded, decoding: Decoding) -> int:
    """The most tokens, end included, that an encoder-decoder generates, within its context."""
    model = loaded.model
    begins = target_begins(loaded, load_tokenizer(loaded.assets))
    room = max(1, min(model.limit, model.max_len) + 1 - len(begins))
    wanted = decoding.max_tokens or loaded.spec.task.search().max_tokens or room
    if wanted > room:
        option = "--max-tokens" if decoding.max_tokens else "task.max_tokens"
        say(
            f"{option} {wanted}: the model's context has room for {room} tokens; texts are cut"
            " there"
        )
    return int(min(wanted, room))


@dataclass(frozen=True)
class Written:
    """A generated text: its tokens, its score in the search, and whether it has an end.

    `log_probability` is the search's sum over the tokens, the end with them, in nats.
    """

    tokens: list[int]
    score: float | None
    ended: bool
    log_probability: float | None = None


def write(
    loaded: Loaded,
    model: Generator,
    prompt: Tensor,
    decoding: Decoding,
    items: Sequence[int],
    most: int,
    stops: Collection[int],
    temperature: float,
    real: Tensor | None,
    watch: Callable[[int], None] | None = None,
) -> list[list[Written]]:
    """Texts after each row of `prompt` (B, T), at most `most` tokens, the best first, no end token.

    Without a search, `watch` gets each token of the first row as it comes.
    """
    beam, sampling = decoding.search(loaded.spec.task.search()), decoding.sampling(temperature)
    if decoding.seed and (beam is not None or not sampling.temperature):
        raise SpecError(
            f"--seed {decoding.seed} is for drawn text, and this is searched or greedy; leave it"
            " out, or give a --temperature"
        )
    with autocast(loaded.device, loaded.precision):
        if beam is not None:
            found = beam_search(model, prompt, beam, max_new_tokens=most, stop=stops, real=real)
            return [
                [
                    Written(h.tokens, h.score, h.ended, h.log_probability)
                    for h in row[: decoding.n_best]
                ]
                for row in found
            ]
        draws = decoding.draws(items, most, loaded.device) if sampling.temperature else None
        steps = []
        for step in generate(
            model, prompt, sampling, max_new_tokens=most, draws=draws, stop=stops, real=real
        ):
            steps.append(step)
            if watch is not None:
                watch(int(step[0]))
    rows = torch.stack(steps, 1).tolist()
    lengths = [next((i for i, token in enumerate(row) if token in stops), None) for row in rows]
    return [
        [Written(row[:length], None, length is not None)]
        for row, length in zip(rows, lengths, strict=True)
    ]


def _records(
    written: list[list[Written]],
    tokenizer: Tokenizer,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Iterator[dict[str, Any]]:
    """{"text", "score" of a search, "unfinished" without an end}, with hypotheses where asked for.

    `prompts` are the tokens that the texts continue; those need no end.
    """
    for number, found in enumerate(written):
        prompt = () if prompts is None else prompts[number]
        shown = [
            {
                "text": added_text(tokenizer, prompt, text.tokens),
                **({} if text.score is None else {"score": round(text.score, 6)}),
                **({"unfinished": True} if prompts is None and not text.ended else {}),
            }
            for text in found
        ]
        yield {**shown[0], **({"hypotheses": shown} if decoding.n_best > 1 else {})}


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    data: AnyDataOptions,
    prompt: str,
    decoding: Decoding,
    device: torch.device,
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece; a piece has whole characters.

    `data` are the data's options.
    """
    reader, most = Prompts(tokenizer, model.limit, data), decoding.max_tokens or CONTINUED
    content, _ = reader.read(prompt, "the text")
    steps = generate(
        model.generator(),
        reader.batch([content])["tokens"].to(device),
        decoding.sampling(DRAWN),
        max_new_tokens=most,
        draws=decoding.draws([0], most, device),
        stop=tokenizer.stops,
    )
    pieces = Pieces(tokenizer, content)
    for step in steps:
        yield pieces.add(int(step[0]))
