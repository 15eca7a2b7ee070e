"""`bigmodel predict`: labels with probabilities, transcripts, and written text; JSON Lines out, in
order.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bigmodel_cli.console import result, say, visible
from bigmodel_cli.convert.generation import settings
from bigmodel_cli.data import Item, input_of, target_of
from bigmodel_cli.device import autocast, keep_few_kernels
from bigmodel_cli.errors import SpecError
from bigmodel_cli.generation.batches import in_order
from bigmodel_cli.generation.text import (
    Decoding,
    Told,
    answer_questions,
    continue_texts,
    generate_from_source,
)
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import wide
from bigmodel_cli.tasks import transcribe

SHOWN = 3
"""Labels shown per item by default."""


def predict(
    loaded: Loaded,
    inputs: Iterable[str],
    decoding: Decoding,
    top: int | None = None,
    word: str = "input",
    tell: Told | None = None,
    *,
    chat: bool = False,
) -> Iterator[dict[str, Any]]:
    """One record for each input, in order, as soon as its batch is done.

    Inputs are paths of images or recordings, or texts (a pair with a tab between) for a classifier;
    paths of recordings for a transcription model; prompts for a decoder, or with `chat` questions
    and conversations as JSON; and sources for an encoder-decoder. An input
    that cannot be read has a record with "error", and at the end `DataError` says how many there
    were; `word` is what an input is called there. `tell` is given a decoder's text as it is
    generated: see `continue_texts`.
    """
    decoding.check()
    kind, target = input_of(loaded.info), target_of(loaded.info)
    writes = loaded.model.can_generate  # whether or not its data had labels
    known = not writes and (target is not None or kind.one_size)
    spells = target is not None and target.spelled
    tags = target is not None and target.tags
    labels = known and not spells and not tags
    if known and (given := decoding.given()):
        raise _out_of_place(given[0], "write text", loaded)
    if top is not None and not (labels and loaded.task.has_top):
        raise _out_of_place("--top", "label", loaded)
    if chat and not continues(loaded):
        raise _out_of_place("--chat", "continue texts", loaded)
    if not kind.in_files:
        inputs = _naming_files(inputs, word)
    if not kind.one_size:
        keep_few_kernels()  # texts and recordings are of many lengths
    if spells:
        yield from write_down(loaded, inputs, word)
    elif tags:
        yield from tag(loaded, inputs, word)
    elif labels:
        yield from label_items(loaded, inputs, top or SHOWN, word)
    elif loaded.model.is_encoder_decoder:
        yield from generate_from_source(loaded, inputs, decoding, word)
    elif chat:
        yield from answer_questions(loaded, inputs, decoding, word, tell)
    elif writes:
        yield from continue_texts(loaded, inputs, decoding, word, tell)
    else:
        raise SpecError(
            f"this model was trained for {loaded.task.name}: it neither labels nor writes"
        )


def _out_of_place(option: str, what: str, loaded: Loaded) -> SpecError:
    """The fault of an option for models that do something else."""
    return SpecError(
        f"{option} is for models that {what}, and this one was trained for {loaded.task.name};"
        " leave it out"
    )


def as_published(loaded: Loaded, decoding: Decoding) -> Decoding:
    """How text is written by a checkpoint that came with settings of generation; they are said."""
    if not loaded.model.can_generate:
        return decoding
    every, drawn, unread = settings(loaded.assets)
    found = decoding.with_settings(every, drawn)
    changed = [name for name in found.given() if name not in decoding.given()]
    shown = [f"{n} {getattr(found, n.removeprefix('--').replace('-', '_'))}" for n in changed]
    if found != decoding and not shown:
        shown = ["greedy"]
    if shown:
        say(f"generation_config.json: {', '.join(shown)}, where no option says otherwise")
    if unread:
        say(f"generation_config.json: not used: {', '.join(unread[:5])}")
    return found


def continues(loaded: Loaded) -> bool:
    """Whether the model continues its input."""
    return loaded.model.can_generate and not loaded.model.is_encoder_decoder


class TextPrinter:
    """Prints continued texts on a terminal as they are generated, each after its prompt, with a
    blank line between them.
    """

    def __init__(self, bold: bool) -> None:
        self.bold, self.count = bold, 0
        self.printed: str | None = None  # of the unfinished text

    def tell(self, given: str, piece: str) -> None:
        """Print the next piece of a text."""
        if self.printed is None:
            self.open(given)
        self.printed = f"{self.printed or ''}{piece}"
        result(piece, end="")

    def open(self, given: str, title: str = "") -> None:
        """Begin a text, after a separator where there are several."""
        self.close()
        if self.count or title:
            result(f"-----{title}-----")
        self.count += 1
        prompt = visible(given)
        result(f"\x1b[1m{prompt}\x1b[0m" if self.bold and prompt else prompt, end="", styled=True)
        self.printed = ""

    def record(self, record: dict[str, Any]) -> None:
        """Print what is left of an input's text, or its hypotheses; on stderr why there is none."""
        if "error" in record:
            say(record["error"])
            return
        for found in record.get("hypotheses", [record]):
            if self.printed is None:
                self.open(
                    record["input"], f" score {found['score']:z.4f} " if "score" in found else ""
                )
            told, text = self.printed or "", found["text"]
            result(text[len(told) :] if text.startswith(told) else f"\n{text}", end="")
            self.close()

    def close(self) -> None:
        """End the line of an unfinished text."""
        if self.printed is not None:
            self.printed = None
            result("")


def _naming_files(inputs: Iterable[str], word: str) -> Iterator[str]:
    """The inputs of a model of texts.

    Warns about the first that names a file, whose content is not read.
    """
    said = False
    for number, given in enumerate(inputs, 1):
        if not said and os.path.isfile(given):
            said = True
            say(
                f"warning: {word} {number} ({given}) names a file, and this model reads the words"
                " themselves; for the lines of the file: bigmodel predict CKPT <"
                f" {shlex.quote(given)}"
            )
        yield given


def label_items(
    loaded: Loaded, inputs: Iterable[str], top: int, word: str = "input"
) -> Iterator[dict[str, Any]]:
    """{"input"} and what the task tells (`Task.predictions`) for each input."""
    if not loaded.task.labels:
        raise SpecError(
            f"this model was trained for {loaded.task.name} and has no head to label them; finetune"
            " it first: bigmodel finetune --from CKPT SPEC, with a task that labels"
        )
    return _answered(loaded, inputs, word, lambda items, batch: _predictions(loaded, batch, top))


def write_down(
    loaded: Loaded, inputs: Iterable[str], word: str = "input"
) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each recording."""

    def answer(items: list[Item], batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        return [{"text": text} for text in transcribe(loaded.model, batch, loaded.info)]

    return _answered(loaded, inputs, word, answer)


def tag(loaded: Loaded, inputs: Iterable[str], word: str = "input") -> Iterator[dict[str, Any]]:
    """{"input", "words", "tags", "probabilities"} for each sentence, and "entities" where tags
    describe entities.

    An entity has a type, its first word (from 0), the one after its last, and its text.
    """

    def answer(items: list[Item], batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        sentences = [item.content[0] for item in items]
        records = _predictions(loaded, batch, 1)
        for words, record in zip(sentences, records, strict=True):
            for entity in record.get("entities", []):
                entity["text"] = " ".join(words[entity["start"] : entity["end"]])
        return [{"words": w, **record} for w, record in zip(sentences, records, strict=True)]

    return _answered(loaded, inputs, word, answer)


def _predictions(loaded: Loaded, batch: dict[str, Tensor], top: int) -> list[dict[str, Any]]:
    outputs = loaded.task.forward(loaded.model, batch, training=False)
    return loaded.task.predictions(outputs, top)


def _answered(
    loaded: Loaded,
    inputs: Iterable[str],
    word: str,
    answer: Callable[[list[Item], dict[str, Tensor]], list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """A record for each input, by `answer` for a batch of them."""

    def computed(items: list[Item], batch: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        with torch.inference_mode(), autocast(loaded.device, loaded.precision), wide():
            return iter(answer(items, batch))

    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    return in_order(reader, inputs, computed, loaded.device, word)
