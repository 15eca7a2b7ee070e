"""A teacher that answers each training row once, before the model is built, and is then freed."""

from __future__ import annotations

import gc
import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigmodel_cli.console import quantity, say
from bigmodel_cli.data import DataSet, Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import OptionError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.progress import progress
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks import Task
from bigmodel_cli.tasks.shown import Spell
from bigmodel_cli.train.answers import Answered, Answers
from bigmodel_cli.train.batches import cuts
from bigmodel_cli.train.distillation import Streams
from bigmodel_cli.train.loader import on_device
from bigmodel_cli.train.plan import example
from bigmodel_cli.train.setup import Opened
from bigmodel_cli.train.teachers import open_teacher

LOOKED_AT = 64
"""Rows by which the answers' size is estimated, and that are compared with another epoch's."""


def answered(
    opened: Opened, task: Task, student: Model, device: torch.device, folder: Path
) -> Opened:
    """The run with a teacher's answers to its training rows, in a file of this folder.

    The teacher is alone in memory: call it before the model is built (`student` may be without
    storage). It computes in fp32, and in evaluation mode, whatever the run does: a resumed run asks
    it again, and has the same answers. Raises `SpecError` where it cannot teach, or not so, and
    `ResourceError` where its answers cannot be kept.
    """
    spec, data, options = opened.spec, opened.data, opened.spec.distill
    assert options is not None
    teacher = open_teacher(options, spec, task, data.info, data.assets(), student, device)
    split, start = data.split("train"), time.perf_counter()
    answers = Answers(folder, len(split))
    watched = Streams(teacher.model, len(student.stream_layers()) if options.hidden else 0)
    with progress("rows that the teacher answers", len(split), "") as shown:
        for samples in _batches(split, spec.train):
            batch = on_device(split.batch(samples, 0, spec.train.seed, True), device)
            answers.write(samples, *_asked(teacher, task, watched, batch))
            shown.add(len(samples))
    say(
        f"the teacher has answered the {len(split):,} training rows in"
        f" {time.perf_counter() - start:.1f} s, and is freed; its answers take"
        f" {quantity(answers.size, 'B')} of the disk until the run ends"
    )
    del teacher, watched
    gc.collect()  # a model's hooks and modules refer to one another
    if device.type == "cuda":
        torch.cuda.empty_cache()
    taught = data.with_training(Answered(split, answers), data.fingerprint)
    return replace(opened, data=taught)


def _batches(split: Split, options: TrainOptions) -> Iterator[Ints]:
    """All samples, those of similar length together, as many as a micro-batch of training has."""
    order = np.arange(len(split))
    bounds = np.arange(0, len(split) + options.micro, options.micro)
    if split.lengths is not None:
        order = np.argsort(split.lengths, kind="stable")
        if options.batch_tokens is not None:
            bounds = cuts(split.lengths[order], options.micro)
    for first, end in itertools.pairwise(bounds.tolist()):
        yield order[first:end]


def _asked(
    teacher: Loaded, task: Task, watched: Streams, batch: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's answers to each row of a batch, as `Answers.write` takes them."""
    kept: list[tuple[Tensor, Tensor | None]] = []
    with torch.no_grad(), watched.to(lambda y, real: kept.append((y.to(torch.bfloat16), real))):
        outputs = task.forward(teacher.model, batch)
    logits, rows = task.target_logits(outputs, batch), task.target_rows(outputs, batch)
    count = len(batch[KEY])
    own = [*logits.split(torch.bincount(rows, minlength=count).tolist())]
    if not kept:
        return own, []
    streams, real = torch.stack([y for y, _ in kept], 2).flatten(2), kept[0][1]  # (B, T, C)
    return own, [streams[i] if real is None else streams[i][real[i]] for i in range(count)]


def check_once(
    teacher: Loaded, task: Task, data: DataSet, student: Model, hidden: bool, folder: Path
) -> None:
    """Raise `OptionError` where a teacher that answers each row once would not see what the student
    does, or its answers do not fit the disk of this folder.

    `teacher` and `student` may be without storage.
    """
    if task.draws:
        raise OptionError(
            (
                "distill.once",
                f"task.type: {task.name} draws anew in each epoch what it hides, and a"
                " teacher that answers once has not seen it; leave distill.once out",
            )
        )
    split = data.split("train")
    if data.missing or not len(split):
        return
    some = np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(np.int64))
    batch = split.batch(some, 0, 0, True)
    if why := split.redrawn() or _differing(batch, split.batch(some, 1, 0, True)):
        raise OptionError(
            (
                "distill.once",
                f"{why}, and a teacher that answers once has not seen that; leave one of them out",
            )
        )
    targets = task.shown(batch, Spell(lambda name, tokens: "")).count / len(some)  # of a row
    logits = int(4 * len(split) * targets * task.choices(data.info))
    streams = _stream_bytes(teacher, student, split) if hidden else 0
    while not folder.is_dir():  # that of a run which has not begun
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if logits + streams > free:
        parts = f", {quantity(streams, 'B')} of them residual streams" if streams else ""
        remedy = "set distill.hidden to 0, or " if 0 < logits < free and streams else ""
        raise OptionError(
            (
                "distill.once",
                f"a teacher's answers to {len(split):,} training rows take about"
                f" {quantity(logits + streams, 'B')}{parts}, and the disk of {folder.resolve()} has"
                f" {quantity(free, 'B')} free; {remedy}leave distill.once out, so that it answers"
                " each batch",
            )
        )


def _differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """What is not the same in the same rows of two epochs."""
    names = [n for n in one if n != KEY and not torch.equal(one[n], other[n])]
    return f"data: rows have other {', '.join(names)} in each epoch" if names else None


def _stream_bytes(teacher: Loaded, student: Model, split: Split) -> int:
    """About how many bytes the streams of all rows take, by the shapes of one."""
    meta = torch.device("meta")
    longest = split.longest_rows()
    sizes: list[int] = []
    streams = Streams(teacher.model, len(student.stream_layers()))
    with torch.no_grad(), streams.to(lambda y, real: sizes.append(2 * y.numel())):
        teacher.model(*example(teacher.spec, teacher.info, 1, meta, longest))
    lengths = split.lengths
    return int(sum(sizes) * (len(split) if lengths is None else lengths.sum() / lengths.max()))
