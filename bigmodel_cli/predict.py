"""`bigmodel predict`: labels with probabilities for images, written text for prompts and sources; JSON Lines out, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bigmodel_cli.data import prepare_image
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.writing import BATCH, Decoding, continue_texts, write_after_reading


def predict(loaded: Loaded, inputs: Iterable[str], decoding: Decoding, top: int) -> Iterator[dict[str, Any]]:
    """One record for each input, in order, as soon as its batch is done.

    Inputs are paths of images for a classifier, prompts for a decoder, and sources for an encoder-decoder. Raises `DataError`
    naming an input that cannot be read.
    """
    decoding.check()
    if loaded.facts.image_shape is not None:
        yield from classify(loaded, inputs, top)
    elif hasattr(loaded.model, "reading"):
        yield from write_after_reading(loaded, inputs, decoding)
    elif hasattr(loaded.model, "new_cache"):
        yield from continue_texts(loaded, inputs, decoding)
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
