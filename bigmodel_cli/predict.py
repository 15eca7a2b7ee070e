"""`bigmodel predict`: labels with probabilities for images, generated text for prompts; JSON Lines out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from bigmodel_cli.data import Tokenizer, load_tokenizer, prepare_image
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Module, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models.generate import generate

BATCH = 32
DRAWN = 0.8
"""The temperature of a decoder's text where none is given."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: `temperature` 0 is greedy (None: 0.8 for a decoder, 0 for an encoder-decoder).

    `top_k` 0 and `top_p` 1 leave every token in.
    """

    max_tokens: int = 200
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def predict(loaded: Loaded, inputs: Iterable[str], sampling: Sampling, top: int) -> Iterator[dict[str, Any]]:
    """One record for each input, in order, as soon as its batch is done.

    Inputs are paths of images for a classifier, prompts for a decoder, and sources for an encoder-decoder. Raises `DataError`
    naming an input that cannot be read.
    """
    if loaded.facts.image_shape is not None:
        yield from classify(loaded, inputs, top)
    elif hasattr(loaded.model, "reading"):
        yield from write_after_reading(loaded, inputs, sampling)
    elif hasattr(loaded.model, "new_cache"):
        yield from continue_texts(loaded, inputs, sampling)
    else:
        raise SpecError(f"this model was trained for {loaded.task.name}: it neither labels images nor continues texts")


def classify(loaded: Loaded, paths: Iterable[str], top: int) -> Iterator[dict[str, Any]]:
    """{"input", "label", "probability", "top": [{"label", "probability"}, ...]} for each image."""
    source = iter(paths)
    while names := list(islice(source, BATCH)):
        images = torch.cat([prepare_image(Path(name), loaded.facts) for name in names]).to(loaded.device)
        with torch.inference_mode(), autocast(loaded.device, loaded.precision):
            probabilities = loaded.model(images).float().softmax(1).cpu()  # (B, classes)
        for name, row in zip(names, probabilities, strict=True):
            values, indices = row.topk(min(top, len(row)))
            best = [
                {"label": loaded.facts.classes[i], "probability": round(v, 6)}
                for v, i in zip(values.tolist(), indices.tolist(), strict=True)
            ]
            yield {"input": name, **best[0], "top": best}


def continue_texts(loaded: Loaded, prompts: Iterable[str], sampling: Sampling) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each prompt, where "text" is what the model adds."""
    tokenizer = load_tokenizer(loaded.assets)
    for prompt in prompts:
        yield {"input": prompt, "text": "".join(stream_text(loaded.model, tokenizer, prompt, sampling, loaded.device))}


def write_after_reading(loaded: Loaded, sources: Iterable[str], sampling: Sampling) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each source, where "text" is the target that the model writes; greedy unless said otherwise."""
    tokenizer, model = load_tokenizer(loaded.assets), cast(Any, loaded.model)
    end = tokenizer.end_of_text
    assert end is not None
    source = iter(sources)
    while texts := list(islice(source, BATCH)):
        rows = [[*tokenizer.encode(text)[: model.max_len - 1], end] for text in texts]
        padded = torch.full((len(rows), max(map(len, rows))), -1)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        steps = generate(
            model.reading(padded.to(loaded.device)),
            torch.full((len(rows), 1), end, device=loaded.device),
            max_new_tokens=min(sampling.max_tokens, model.max_len - 1),
            temperature=sampling.temperature or 0.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            generator=torch.Generator(device=loaded.device).manual_seed(sampling.seed),
            stop=end,
        )
        with autocast(loaded.device, loaded.precision):
            written = torch.stack(list(steps), 1).tolist()  # (B, T)
        for text, row in zip(texts, written, strict=True):
            yield {"input": text, "text": tokenizer.decode(row[: row.index(end)] if end in row else row)}


def stream_text(
    model: Module, tokenizer: Tokenizer, prompt: str, sampling: Sampling, device: torch.device
) -> Iterator[str]:
    """What the model adds to the prompt, piece by piece; a piece ends where its characters are whole."""
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise DataError("the prompt is empty; give at least one character")
    produced: list[int] = []
    shown = ""
    steps = generate(
        model,
        torch.tensor([tokens], device=device),
        max_new_tokens=sampling.max_tokens,
        temperature=DRAWN if sampling.temperature is None else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        generator=torch.Generator(device=device).manual_seed(sampling.seed),
        stop=tokenizer.end_of_text,
    )
    for step in steps:
        produced.append(int(step[0]))
        whole = tokenizer.decode(produced).rstrip("\ufffd")  # a character whose last bytes are still to come
        yield whole[len(shown) :]
        shown = whole
