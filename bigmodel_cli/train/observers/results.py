"""Samples of a finished model: generated text, reconstructed images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigmodel_cli.attend.picture import draw_rows
from bigmodel_cli.data import denormalise, load_tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.generation.text import Decoding, stream_text
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.modes import evaluating
from bigmodel_cli.tasks import Pictures
from bigmodel_cli.train.observers.base import Observer
from bigmodel_cli.train.observers.curve import drawn

if TYPE_CHECKING:
    from bigmodel_cli.data.base import Split
    from bigmodel_cli.train.run import Run

SHOWN = 8


class SampleText(Observer):
    """Shows generated text after the training, where the task asks for it."""

    def on_end(self, run: Run) -> None:
        spec, wanted = run.loaded.spec, run.loaded.spec.task.sample()
        if wanted is None or not _can_pass(run):
            return
        if _split(run).answered:
            run.say(solved_problem(run))
            if not wanted.prompt.strip():
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


def solved_problem(run: Run) -> str:
    """A problem of the data without its answers, the answers, and the model's."""
    batch = _batch(run, 1)
    tokens, asked = batch["tokens"][0].tolist(), batch["loss_mask"][0].tolist()
    with evaluating(run.loaded.model), torch.inference_mode():
        logits = run.task.forward(run.loaded.model, batch, training=False)[0]
    tokenizer = load_tokenizer(run.loaded.assets)
    words = [tokenizer.decode([token]) for token in tokens]
    guesses = ["", *(tokenizer.decode([token]) for token in logits.argmax(-1).tolist())]
    places = [i for i, word in enumerate(words) if asked[i] and word]
    problem = ["_" if i in places else word for i, word in enumerate(words)]
    answer, guess = ([some[i] or "(end)" for i in places] for some in (words, guesses))
    shown = {"sample problem": problem, "its answer": answer, "the model's": guess}
    return "".join(f"{name}: {' '.join(own).strip()}\n" for name, own in shown.items())


class SamplePictures(Observer):
    """Draws the task's pictures of validation images (training images without a validation)."""

    def on_end(self, run: Run) -> None:
        wanted = run.loaded.spec.task.pictures()
        if wanted is None or not _can_pass(run):
            return
        picture = run.directory.path / f"{wanted.file}.png"
        if drawn(picture, lambda: draw_pictures(run, wanted, picture), run.say):
            run.say(f"{wanted.title}: {picture}{wanted.note}")


def draw_pictures(run: Run, wanted: Pictures, path: Path) -> None:
    """Draw the task's pictures of the split's first images as a PNG."""
    batch = _batch(run, SHOWN)
    with evaluating(run.loaded.model), torch.inference_mode():
        rows = wanted.rows(run.loaded.model, batch)
    pixels = {name: denormalise(images, run.loaded.info).cpu() for name, images in rows.items()}
    draw_rows(pixels, f"{run.directory.path.absolute().name}: {wanted.title}", path)


def _can_pass(run: Run) -> bool:
    """Whether this process can let the model pass by itself; where not, that is said."""
    able = run.state.kept.passes_alone
    if not able:
        run.say(
            "no sample is shown: train.parallel.tensor divides the model among processes; see"
            " bigmodel predict"
        )
    return able


def _split(run: Run) -> Split:
    """Validation, or training without one."""
    return run.validation if run.validation is not None else run.loader.batches.split


def _batch(run: Run, most: int) -> dict[str, Tensor]:
    """The split's first samples, on the device."""
    split = _split(run)
    batch = split.batch(np.arange(min(most, len(split))), 0, 0, False)
    return {name: tensor.to(run.device) for name, tensor in batch.items()}
