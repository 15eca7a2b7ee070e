"""`bigmodel predict`: labels with probabilities, transcripts, and written text; JSON Lines out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bigmodel_cli.data import load_tokenizer, prepare_image, prepare_sounds, prepare_texts
from bigmodel_cli.device import autocast, keep_few_kernels
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.tasks import inputs_of, transcribe
from bigmodel_cli.writing import BATCH, Decoding, continue_texts, write_after_reading


def predict(loaded: Loaded, inputs: Iterable[str], decoding: Decoding, top: int) -> Iterator[dict[str, Any]]:
    """One record for each input, in order, as soon as its batch is done.

    Inputs are paths of images or recordings, or texts (a pair with a tab between) for a classifier; paths of recordings for a
    model that writes down what is said; prompts for a decoder, and sources for an encoder-decoder. Raises `DataError` naming an
    input that cannot be read.
    """
    decoding.check()
    if loaded.facts.image_shape is None:
        keep_few_kernels()  # texts and recordings are of many lengths
    if loaded.facts.spelling:
        yield from write_down(loaded, inputs)
    elif loaded.facts.classes or loaded.facts.image_shape is not None:
        yield from classify(loaded, inputs, top)
    elif hasattr(loaded.model, "reading"):
        yield from write_after_reading(loaded, inputs, decoding)
    elif hasattr(loaded.model, "new_cache"):
        yield from continue_texts(loaded, inputs, decoding)
    else:
        raise SpecError(f"this model was trained for {loaded.task.name}: it neither labels nor writes")


def classify(loaded: Loaded, inputs: Iterable[str], top: int) -> Iterator[dict[str, Any]]:
    """{"input", "label", "probability", "top": [{"label", "probability"}, ...]} for each input."""
    for names, batch in _batches(loaded, inputs):
        with torch.inference_mode(), autocast(loaded.device, loaded.precision):
            probabilities = loaded.model(*inputs_of(batch)).float().softmax(1).cpu()  # (B, classes)
        for name, row in zip(names, probabilities, strict=True):
            values, indices = row.topk(min(top, len(row)))
            best = [
                {"label": loaded.facts.classes[i], "probability": round(v, 6)}
                for v, i in zip(values.tolist(), indices.tolist(), strict=True)
            ]
            yield {"input": name, **best[0], "top": best}


def write_down(loaded: Loaded, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
    """{"input", "text"} for each recording."""
    for names, batch in _batches(loaded, inputs):
        with torch.inference_mode(), autocast(loaded.device, loaded.precision):
            texts = transcribe(loaded.model, batch)
        for name, text in zip(names, texts, strict=True):
            yield {"input": name, "text": text}


def _batches(loaded: Loaded, inputs: Iterable[str]) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """(inputs, what the model reads of them) of one batch after the other."""
    source = iter(inputs)
    while names := list(islice(source, BATCH)):
        yield names, {name: tensor.to(loaded.device) for name, tensor in _prepared(loaded, names).items()}


def _prepared(loaded: Loaded, names: list[str]) -> dict[str, Tensor]:
    facts = loaded.facts
    if facts.sound is not None:
        return prepare_sounds([Path(name) for name in names], facts)
    if facts.image_shape is not None:
        return {"image": torch.cat([prepare_image(Path(name), facts) for name in names])}
    assert facts.context is not None
    sides = len(getattr(loaded.spec.data, "text", [""]))
    return prepare_texts([_sides(name, sides) for name in names], load_tokenizer(loaded.assets), facts.context)


def _sides(text: str, count: int) -> list[str]:
    """The two texts of a pair, where the model labels pairs. Raises `SpecError` for a line that is none."""
    if count == 1:
        return [text]
    sides = text.split("\t")
    if len(sides) != 2:
        raise SpecError(f"{text[:60]!r}: this model labels pairs of texts; write both on a line with a tab between")
    return sides
