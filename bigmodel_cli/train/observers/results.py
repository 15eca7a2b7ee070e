"""Samples of a finished model: generated text, reconstructed images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigmodel_cli.attend.picture import draw_rows
from bigmodel_cli.data import denormalise, load_tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.generation.text import Decoding, stream_text
from bigmodel_cli.lazy import torch
from bigmodel_cli.modes import evaluating
from bigmodel_cli.tasks import Pictures
from bigmodel_cli.train.observers.base import Observer
from bigmodel_cli.train.observers.curve import drawn

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run

SHOWN = 8


class SampleText(Observer):
    """Shows generated text after the training, where the task asks for it."""

    def on_end(self, run: Run) -> None:
        spec, wanted = run.loaded.spec, run.loaded.spec.task.sample()
        if wanted is None:
            return
        decoding = Decoding(wanted.tokens, wanted.temperature, seed=spec.train.seed)
        try:
            tokenizer = load_tokenizer(run.loaded.assets)
            pieces = stream_text(
                run.loaded.model, tokenizer, spec.data, wanted.prompt, decoding, run.device
            )
            text = "".join(pieces)
        except DataError as error:
            run.say(f"no sample is shown: task.sample_prompt: {error}")
            return
        run.say(f"sample:\n{wanted.prompt}{text}\n")


class SamplePictures(Observer):
    """Draws the task's pictures of validation images (training images without a validation)."""

    def on_end(self, run: Run) -> None:
        wanted = run.loaded.spec.task.pictures()
        if wanted is None:
            return
        picture = run.directory.path / f"{wanted.file}.png"
        if drawn(picture, lambda: draw_pictures(run, wanted, picture), run.say):
            run.say(f"{wanted.title}: {picture}{wanted.note}")


def draw_pictures(run: Run, wanted: Pictures, path: Path) -> None:
    """Draw the task's pictures of the split's first images as a PNG."""
    split = run.validation if run.validation is not None else run.loader.batches.split
    samples = np.arange(min(SHOWN, len(split)))
    batch = {
        name: tensor.to(run.device) for name, tensor in split.batch(samples, 0, 0, False).items()
    }
    with evaluating(run.loaded.model), torch.inference_mode():
        rows = wanted.rows(run.loaded.model, batch)
    pixels = {name: denormalise(images, run.loaded.info).cpu() for name, images in rows.items()}
    draw_rows(pixels, f"{run.directory.path.absolute().name}: {wanted.title}", path)
