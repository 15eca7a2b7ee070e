"""The structures that are compared: their specs, their sizes, and what a step of each takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.assemble import build_on_meta
from bigmodel_cli.bench.learn.budget import Budget, Cost
from bigmodel_cli.bench.worker import Asked, Process
from bigmodel_cli.catalog import samples
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say, short_names
from bigmodel_cli.data import TOKENIZER, load_tokenizer
from bigmodel_cli.differences import differing, leaves
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.overrides import Change, Override, apply_overrides
from bigmodel_cli.spec import Spec, check, load
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.setup import open_run
from bigmodel_cli.yaml_source import parse_yaml

CLOSE = 0.05
"""How far a scaled network's parameters may be from the budget."""
ROWS = 64
"""Samples whose bytes are counted."""
TRIED = 24
"""Widths that are tried near the best guess, beside each of which it is guessed anew."""


@dataclass(frozen=True)
class Probe:
    """A structure as measured: its parameters, and a step's cost; `size` of `unit` a step."""

    parameters: int
    seconds: float
    flops: float
    batch_size: int
    size: float
    unit: str


@dataclass(frozen=True)
class Structure:
    """A spec with its changes, and its name among the others."""

    name: str
    target: str
    changes: Sequence[Change]
    spec: Spec
    probe: Probe
    bytes: float | None  # of a sample, where they are asked for and known

    @property
    def cost(self) -> Cost:
        """Of a step."""
        batch, p = self.probe.batch_size, self.probe
        own = None if self.bytes is None else self.bytes * batch
        return Cost(p.seconds, p.flops, own, batch)

    @property
    def rate(self) -> float:
        """The spec's learning rate."""
        return self.spec.train.optimizer.lr


def probed(target: str, changes: Sequence[Change], device: str) -> Probe:
    """A structure's steps, measured in a process of its own."""
    subject = Process(Asked(target, device=device, changes=changes))
    try:
        block = subject.block(1.0, 3)
        facts, work = subject.facts(), subject.work()
    finally:
        subject.close()
    if facts.data != "real":
        raise SpecError(f"{target}: its data is not there; --learn trains on it")
    assert work is not None, "training steps have known FLOPs"
    size = (facts.size, facts.unit)
    return Probe(facts.parameters, block.median, work.useful, facts.batch_size, *size)


Look = Callable[[str, Sequence[Change], str], Probe]


def spec_of(target: str, changes: Sequence[Change]) -> Spec:
    """The spec of a file, or of a sample by its name. Raises `SpecError`."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load(path, changes)
    text = samples().get(target)
    if text is None or os.path.lexists(path):
        more = f"; its spec is {path / 'spec.yaml'}" if os.path.isdir(path) else ""
        raise SpecError(
            f"{target}: --learn trains from initial weights, and takes specs (NAME.yaml) or names"
            f" of sample specs{more}"
        )
    root = parse_yaml(text.encode(), f"{target}.yaml")
    apply_overrides(root, changes, Spec)
    return check(root)


def checked(targets: Sequence[str], changes: Sequence[Change]) -> list[tuple[str, Spec]]:
    """Each target's name and spec; says in what they differ beside the model.

    Raises `SpecError` where they cannot be compared.
    """
    specs = [spec_of(target, changes) for target in targets]
    paths = [[Path(target).with_suffix(""), Path(target)] for target in targets]
    names = short_names(paths)
    for name, spec in zip(names, specs, strict=True):
        if "val" not in spec.data.splits(Path()):
            raise SpecError(
                f"{name}: there is no validation data to compare by; name some, or set"
                " data.val_fraction"
            )
        if spec.init.checkpoint is not None:
            raise SpecError(f"{name}: init.checkpoint: --learn trains from initial weights")
    apart = differing([dict(leaves(spec.to_dict())) for spec in specs])
    task = [path for path in apart if path.startswith("task.")]
    if task:
        raise SpecError(f"the structures differ in {', '.join(task)}; compare them by one task")
    others = [path for path in apart if not path.startswith("model.")]
    if others:
        say(f"note: beside the model, the structures differ in {', '.join(others)}")
    return list(zip(names, specs, strict=True))


def sized(spec: Spec, name: str, budget: Budget) -> Sequence[Override]:
    """The width (`model.dim`) at which the model has as many parameters as the budget says.

    All else stays as the spec has it. Raises `SpecError` where no width comes close.
    """
    load_torch()
    values = spec.model.model_dump(mode="json")
    where = f"--budget {budget.text}: {name}"
    if not isinstance(values.get("dim"), int):
        raise SpecError(
            f"{where}: a model of type {spec.model.type} has no width model.dim to scale; give"
            " specs of equal size, and a length alone"
        )
    info = open_run(spec, expect=True).data.info
    found = _nearest(lambda dim: _parameters(spec, info, dim), values["dim"], budget.amount)
    if found is None or abs(found[1] / budget.amount - 1) > CLOSE:
        nearest = f"; the nearest has {found[1]:,}, with model.dim {found[0]}" if found else ""
        raise SpecError(
            f"{where}: no width model.dim has so many parameters, within {100 * CLOSE:.0f} %"
            f"{nearest}; change other sizes, or the budget"
        )
    if found[0] == values["dim"]:
        return []
    say(f"{name}: model.dim {values['dim']} -> {found[0]}, for {found[1]:,} parameters")
    return [Override("model.dim", found[0], f"--budget {budget.text}")]


def _parameters(spec: Spec, info: DatasetInfo, dim: int) -> int | None:
    """The number of parameters at a width; None where the structure cannot have it."""
    try:
        model = spec.model.model_validate({**spec.model.model_dump(mode="json"), "dim": dim})
        built = build_on_meta(spec.model_copy(update={"model": model}), info)
    except (SpecError, ValueError):
        return None
    return sum(p.numel() for p in built.parameters())


def _nearest(count: Callable[[int], int | None], dim: int, wanted: float) -> tuple[int, int] | None:
    """(width, parameters) nearest to `wanted`: parameters grow about as the square of the width."""
    known: dict[int, int | None] = {}

    def best() -> tuple[int, int] | None:
        able = [(d, n) for d, n in known.items() if n is not None]
        return min(able, key=lambda pair: (abs(pair[1] - wanted), pair[0]), default=None)

    known[dim] = count(dim)
    found = best()
    for _ in range(4):
        if found is None or abs(found[1] / wanted - 1) <= CLOSE / 5:
            break
        before, guess = found, max(1, round(found[0] * (wanted / found[1]) ** 0.5))
        for near in sorted(range(1, 2 * guess), key=lambda d: abs(d - guess))[:TRIED]:
            if near not in known:
                known[near] = count(near)
        found = best()
        if found == before:
            break
    return found


def bytes_of(spec: Spec) -> float | None:
    """Bytes of a training sample: of its text in UTF-8, or one for each value of an image's pixels;
    None where they are not known.
    """
    load_torch()
    opened = open_run(spec)
    data, split = opened.data, opened.data.split("train")
    rows = np.arange(min(ROWS, len(split)))
    batch = split.batch(rows, 0, spec.train.seed, False)
    if TOKENIZER in data.assets():
        tokenizer = load_tokenizer(data.assets())
        reads = build_task(spec.task, data.info).reads
        texts = [
            tokenizer.decode([token for token in row if token >= 0])
            for name in reads
            if name in batch
            for row in batch[name].tolist()
        ]
        return sum(len(text.encode()) for text in texts) / len(rows)
    if data.info.image_shape is not None:
        return float(np.prod(data.info.image_shape))
    return None


def to_json(structure: Structure) -> dict[str, Any]:
    """As plain values."""
    return {
        "name": structure.name,
        "target": structure.target,
        "rate": structure.rate,
        "bytes_per_sample": structure.bytes,
        **asdict(structure.probe),
    }
