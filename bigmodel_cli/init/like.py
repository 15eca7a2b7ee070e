"""A spec with the structure of a sample for a user's own data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from bigmodel_cli.assemble import build_on_meta
from bigmodel_cli.catalog import like_what, samples
from bigmodel_cli.console import one_line, say
from bigmodel_cli.data import DataSet, open_data
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.init.draft import warmup
from bigmodel_cli.spec import Spec, check
from bigmodel_cli.tasks import TASKS, build_task
from bigmodel_cli.yaml_scalars import on_one_line
from bigmodel_cli.yaml_source import parse_yaml

STRUCTURE = ("size", "labels", "augment", "token_dropout", "window", "hop", "mels")
"""Options of data that belong to the sample's structure."""
STRINGS = ("units", "join")
"""Those of recordings that have labels, and no transcripts of their own."""
DATA = re.compile(r"^data:.*?(?=^[a-z]|\Z)", re.MULTILINE | re.DOTALL)
BATCH = re.compile(r"(?<=\bbatch_size: )\d+")
WARMUP = re.compile(r"(?<=\bwarmup: )\d+")
HEAD = re.compile(r"(?:^#.*\n)+", re.MULTILINE)


def task_of(like: str) -> str:
    """The task of the sample of that name, or of that task."""
    return like if like in TASKS else str(_plain(like_what(like))["task"]["type"])


def with_structure(own: str, like: str, path: Path) -> str:
    """The text of a spec that has the data of `own`, and all else from the sample; `own` itself
    where its task is the one that is asked for.

    Raises `SpecError` where the sample does not fit the data.
    """
    drafted = _plain(own)
    if drafted["task"]["type"] == like:
        return own
    sample = _plain(like_what(like))
    try:
        made = _joined(drafted, like, path)
        spec = check(parse_yaml(made.encode(), str(path)))
        data = _opened(spec)
        _check_fit(spec, data)
    except (SpecError, DataError) as error:
        data = _opened(check(parse_yaml(own.encode(), str(path))))
        fitting = [n for n in samples() if "finetune" not in n and _fits(drafted, n, path, data)]
        others = f", or --like {', '.join(fitting)}" if fitting else ""
        raise SpecError(
            f"--like {like} ({_what(sample)}) does not fit this data"
            f" ({drafted['data']['type']}, for {_what(drafted)}): {error}\nLeave --like out{others}"
        ) from None
    batch = BATCH.search(made)
    count = len(data.split("train"))
    if batch and int(batch[0]) > count:  # no step could be taken
        made = BATCH.sub(str(drafted["train"].get("batch_size", count)), made)
    made = _warmed_up(made, path, data)
    lengths = (_length(values["train"]) for values in (_plain(made), drafted))
    say("train is that of {}: {}; for this data alone it would be {}".format(like, *lengths))
    return made


def _warmed_up(made: str, path: Path, data: DataSet) -> str:
    """The spec with no more warm-up than fits the steps that its epochs of this data are."""
    train, split = check(parse_yaml(made.encode(), str(path))).train, data.split("train")
    if train.epochs is None:
        return made
    size = len(split)
    if train.batch_tokens is not None and split.lengths is not None:
        size = int(split.lengths.sum())
    steps = train.total_steps(Fraction(max(size, train.micro), train.micro)) or 0
    fits = warmup(steps, train.schedule.warmup)
    if fits == train.schedule.warmup:
        return made
    say(
        f"train.schedule.warmup: {fits} steps, a tenth of the {steps:,} that this data makes; the"
        f" sample's {train.schedule.warmup} are for more"
    )
    return WARMUP.sub(str(fits), made)


def _joined(drafted: Mapping[str, Any], like: str, path: Path) -> str:
    """The sample's text with the data of the draft; its options are checked."""
    text, own = like_what(like), drafted["data"]
    sample = _plain(text)["data"]
    names = STRUCTURE if "transcripts" in own else STRUCTURE + STRINGS
    taken = {name: sample[name] for name in names if name in sample}
    kept = {n: v for n, v in own.items() if n != "seconds" or n in sample}  # else rows of frames
    lines = "\n".join(f"  {n}: {on_one_line(v)}" for n, v in {**kept, **taken}.items())
    head = f"# Like {like}, for the data below. Made by `bigmodel init`; edit it freely.\n"
    head += f"#   bigmodel pretrain {one_line(str(path))}\n"
    text = DATA.sub(lambda _: f"data:\n{lines}\n\n", HEAD.sub(lambda _: head, text, count=1))
    check(parse_yaml(text.encode(), str(path)))
    return text


def _opened(spec: Spec) -> DataSet:
    return open_data(spec.data, base=Path(), say=lambda _: None)


def _check_fit(spec: Spec, data: DataSet) -> None:
    """Raise `SpecError` where model, task and data do not fit one another."""
    build_task(spec.task, data.info).check(spec.model, data.info, data.names(), spec.data.type)
    build_on_meta(spec, data.info)


def _fits(drafted: Mapping[str, Any], like: str, path: Path, data: DataSet) -> bool:
    """Whether a sample has the draft's task, and its model reads such data."""
    if _plain(like_what(like))["task"]["type"] != drafted["task"]["type"]:
        return False
    try:
        _check_fit(check(parse_yaml(_joined(drafted, like, path).encode(), str(path))), data)
    except (SpecError, DataError):
        return False
    return True


def _what(values: Mapping[str, Any]) -> str:
    return f"task {values['task']['type']}, model {values['model']['type']}"


def _length(train: Mapping[str, Any]) -> str:
    shown = ("steps", "epochs", "minutes", "batch_size", "batch_tokens")
    return ", ".join(f"{name} {train[name]}" for name in shown if name in train)


def _plain(text: str) -> dict[str, Any]:
    """The values of a spec, its task a mapping."""
    values: dict[str, Any] = parse_yaml(text.encode(), "").plain()
    task = values.get("task", {})
    return {**values, "task": {"type": task} if isinstance(task, str) else task}
