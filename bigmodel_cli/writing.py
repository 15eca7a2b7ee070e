"""Texts that a model writes: continuations of prompts, and targets after reading sources; drawn, greedy or by beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from bigmodel_cli.config import PADDING
from bigmodel_cli.data import Tokenizer, load_source_tokenizer, load_tokenizer
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models.beam import Beam, beam_search
from bigmodel_cli.models.generate import Sampling, generate

BATCH = 64
DRAWN = 0.8
"""The temperature of a decoder's text where none is given."""


@dataclass(frozen=True)
class Decoding:
    """How a text is written. What is None is the task's own way: a decoder draws, an encoder-decoder searches.

    `beams` 1 is greedy, unless a temperature above 0 is given; `n_best` hypotheses are shown of those that the search keeps.
    """

    max_tokens: int = 200
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int | None = None
    length_penalty: float | None = None
    n_best: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise `SpecError` where two ways are asked for at once."""
        searching = max(self.beams or 1, self.n_best) > 1
        if searching and self.temperature:
            raise SpecError("--beams and --n-best search, --temperature draws; give one or the other")
        if searching and self.repetition_penalty != 1:
            raise SpecError("--repetition-penalty is for drawn and greedy text; leave out --beams and --n-best")
        if self.beams is not None and self.n_best > self.beams:
            raise SpecError(f"--n-best {self.n_best} is more than the {self.beams} hypotheses that --beams keeps")

    def search(self, task: Any) -> Beam | None:
        """The beam search to make; None where text is drawn or greedy."""
        plain = self.temperature is not None or self.repetition_penalty != 1
        width = max(self.n_best, self.beams or (1 if plain else int(getattr(task, "beams", 1))))
        penalty = float(getattr(task, "length_penalty", 1.0)) if self.length_penalty is None else self.length_penalty
        return Beam(width, penalty) if width > 1 else None

    def sampling(self, default: float) -> Sampling:
        """How a next token is chosen where nothing is searched."""
        temperature = default if self.temperature is None else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    def draws(self, items: Sequence[int], device: torch.device) -> Tensor:
        """(B, max_tokens) uniform numbers for these items: functions of the seed and the item's number alone."""
        rows = [
            torch.rand(
                self.max_tokens, generator=torch.Generator().manual_seed((self.seed * 1_000_003 + i) % (1 << 63))
            )
            for i in items
        ]
        return torch.stack(rows).to(device)


def continue_texts(loaded: Loaded, prompts: Iterable[str], decoding: Decoding) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each prompt, where "text" is what the model adds."""
    tokenizer = load_tokenizer(loaded.assets)
    for first, texts in _batches(prompts, BATCH):
        rows = [_prompt(tokenizer, text) for text in texts]
        longest = max(map(len, rows))
        padded = torch.tensor([[*[row[0]] * (longest - len(row)), *row] for row in rows])
        real = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
        ragged = bool(real.all())
        written = write(
            loaded,
            loaded.model,
            padded.to(loaded.device),
            decoding,
            range(first, first + len(rows)),
            tokenizer.end_of_text,
            DRAWN,
            None if ragged else real.to(loaded.device),
        )
        yield from _records(texts, written, tokenizer, decoding)


def write_after_reading(loaded: Loaded, sources: Iterable[str], decoding: Decoding) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each source, where "text" is the target that the model writes."""
    tokenizer, model = load_tokenizer(loaded.assets), cast(Any, loaded.model)
    reader = load_source_tokenizer(loaded.assets)
    end, ends = tokenizer.end_of_text, reader.end_of_text
    assert end is not None
    assert ends is not None
    for first, texts in _batches(sources, BATCH):
        rows = [[*reader.encode(text)[: model.max_len - 1], ends] for text in texts]
        padded = torch.full((len(rows), max(map(len, rows))), PADDING)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        with autocast(loaded.device, loaded.precision):
            reading = model.reading(padded.to(loaded.device))
        start = torch.full((len(rows), 1), end, device=loaded.device)
        written = write(loaded, reading, start, decoding, range(first, first + len(rows)), end, 0.0, None)
        yield from _records(texts, written, tokenizer, decoding)


Written = list[tuple[list[int], float | None]]
"""What was written for one input: tokens with the score that they were compared by, the best first."""


def write(
    loaded: Loaded,
    model: Any,
    prompt: Tensor,
    decoding: Decoding,
    items: Sequence[int],
    end: int | None,
    temperature: float,
    real: Tensor | None,
) -> list[Written]:
    """What the model writes after each row of `prompt` (B, T), the mark of the end left out."""
    beam = decoding.search(loaded.spec.task)
    most = (
        min(decoding.max_tokens, max(1, model.limit - 1))
        if beam is not None or temperature == 0
        else decoding.max_tokens
    )
    with autocast(loaded.device, loaded.precision):
        if beam is not None:
            found = beam_search(model, prompt, beam, max_new_tokens=most, stop=end, real=real)
            return [[(h.tokens, h.score) for h in row[: decoding.n_best]] for row in found]
        sampling = decoding.sampling(temperature)
        draws = decoding.draws(items, loaded.device) if sampling.temperature else None
        steps = list(generate(model, prompt, sampling, max_new_tokens=most, draws=draws, stop=end, real=real))
    rows = torch.stack(steps, 1).tolist()
    return [[(row[: row.index(end)] if end in row else row, None)] for row in rows]


def _records(
    inputs: list[str], written: list[Written], tokenizer: Tokenizer, decoding: Decoding
) -> Iterator[dict[str, Any]]:
    for text, found in zip(inputs, written, strict=True):
        shown = [
            {"text": tokenizer.decode(tokens), **({} if score is None else {"score": round(score, 6)})}
            for tokens, score in found
        ]
        yield {"input": text, **shown[0], **({"hypotheses": shown} if decoding.n_best > 1 else {})}


def _batches(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the first, texts) of one batch after the other."""
    source, first = iter(texts), 0
    while batch := list(islice(source, size)):
        yield first, batch
        first += len(batch)


def _prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode(text)
    if not tokens:
        raise DataError("the prompt is empty; give at least one character")
    return tokens


def stream_text(
    model: Module, tokenizer: Tokenizer, prompt: str, decoding: Decoding, device: torch.device
) -> Iterator[str]:
    """What the model adds to the prompt, piece by piece; a piece ends where its characters are whole."""
    produced: list[int] = []
    shown = ""
    steps = generate(
        model,
        torch.tensor([_prompt(tokenizer, prompt)], device=device),
        decoding.sampling(DRAWN),
        max_new_tokens=decoding.max_tokens,
        draws=decoding.draws([0], device),
        stop=tokenizer.end_of_text,
    )
    for step in steps:
        produced.append(int(step[0]))
        whole = tokenizer.decode(produced).rstrip("\ufffd")  # a character whose last bytes are still to come
        yield whole[len(shown) :]
        shown = whole
