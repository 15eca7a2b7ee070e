"""`bigmodel merge A B C`: the mean of several checkpoints' weights, as one network.

Networks finetuned from the same weights often lie in one basin of the loss, where the mean of their
weights does as well as the mean of their answers, at the price of one (Wortsman et al. 2022, "Model
soups"). Networks trained from different random weights do not: so each and the mean are measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.console import sentence, table
from bigmodel_cli.convert import opening
from bigmodel_cli.data import (
    SOURCE_TOKENIZER,
    SPECIAL_TOKENS,
    TOKENIZER,
    TRAINED_ON,
    load_trained_on,
)
from bigmodel_cli.data.trained_on import dump, joined
from bigmodel_cli.errors import BigmodelError, CheckpointError, SpecError
from bigmodel_cli.evaluation.evaluator import estimates
from bigmodel_cli.evaluation.report import evaluate_items
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.metrics import shown
from bigmodel_cli.metrics.intervals import Estimate
from bigmodel_cli.spec import of_checkpoint
from bigmodel_cli.start_options import InitOptions

VALIDATION = "val"
RUNNING = "running_mean"
"""What a batch normalisation's tensor ends with that counts what it was shown."""


@dataclass(frozen=True)
class Average:
    """Metrics of the validation split, of each checkpoint and of their mean.

    `note` says why there are none, or what is doubtful.
    """

    paths: tuple[Path, ...]
    each: tuple[dict[str, Estimate], ...] = ()
    mean: dict[str, Estimate] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "averaged": [str(path) for path in self.paths],
            "each": [{n: e.to_json() for n, e in found.items()} for found in self.each],
            "average": {n: e.to_json() for n, e in self.mean.items()},
            **({"note": self.note} if self.note else {}),
        }

    def to_text(self) -> str:
        """A table for people, and what is to be said of it."""
        columns = ["validation", "lowest", "mean of each", "highest", "average", "95 % from", "to"]
        rows = []
        for name, found in self.mean.items():
            values = [e[name].value for e in self.each]
            numbers = (min(values), sum(values) / len(values), max(values))
            cells = (*numbers, found.value, found.low, found.high)
            rows.append([name, *(shown(x, found.percent) for x in cells)])
        text = f"the mean of the weights of {len(self.paths)} checkpoints"
        lines = [sentence(text), *([table(columns, rows)] if rows else [])]
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])


def average(paths: Sequence[Path], out: Path, device: str) -> tuple[Path, Average]:
    """Write the mean of the checkpoints' weights to the folder `out`, and measure all of them.

    Means are of fp64, rounded once; what the first one knows beside its weights (its spec,
    tokenizer and labels) is kept. Raises `SpecError` where they are not of one network, have an
    adapter or running statistics, or `out` is there.
    """
    load_torch()
    if os.path.lexists(out):
        raise SpecError(f"--out: {out} is there already; name another folder")
    paths = [opening.find(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise SpecError(f"{', '.join(map(str, paths))}: one of them is named twice")
    read = [opening.read(path) for path in paths]
    for path, found in zip(paths, read, strict=True):
        _check_alone(path, found)
        _check_alike(paths[0], read[0], path, found)
    first = read[0]
    weights = checkpoints.mean_weights([found.model for found in read])
    if bad := checkpoints.not_finite(weights.items()):
        raise CheckpointError(f"{out}: not written: {bad}")
    started = {found.spec.get("init", {}).get("checkpoint") for found in read}
    spec = of_checkpoint(first.spec, paths[0])
    contents = checkpoints.Contents(
        step=first.step,
        model=weights,
        train={},
        state={"step": first.step, "averaged": [opening.title(path) for path in paths]},
        spec=spec.model_copy(update={"init": InitOptions()}).recorded(),
        info=first.info,
        assets={**first.assets, **_trained_on(read)},
    )
    path = checkpoints.save(out.parent, contents, out.name)
    doubt = ""
    if len(started) > 1 or None in started:
        doubt = (
            "these checkpoints do not name one start (finetune --from): a mean of weights that did"
            " not start from the same ones is seldom of use"
        )
    return path, _measured(paths, path, device, doubt)


def _check_alone(path: Path, found: checkpoints.Checkpoint) -> None:
    """Raise `SpecError` for a checkpoint whose weights have no mean."""
    if found.spec.get("adapter") is not None:
        raise SpecError(
            f"{path}: it has an adapter, whose two factors have no meaningful mean; merge it first:"
            f" bigmodel merge {path} --out FOLDER"
        )
    if any(name.endswith(RUNNING) for name in found.model):
        raise SpecError(
            f"{path}: its batch normalisation has running statistics, which the mean of weights"
            " does not share; take the best of them (bigmodel eval RUN), or average the checkpoints"
            " of one training, which takes them anew: bigmodel finetune ... --set"
            " train.average_last=5 --set train.validate_every=100"
        )


def _check_alike(
    where: Path, first: checkpoints.Checkpoint, path: Path, found: checkpoints.Checkpoint
) -> None:
    """Raise `SpecError` where the second is not the first's network with other weights."""
    known = [_known(checkpoint) for checkpoint in (first, found)]
    apart = [name for name in known[0] if known[0][name] != known[1][name]]
    weights = [
        {name: (t.shape, t.dtype) for name, t in checkpoint.model.items()}
        for checkpoint in (first, found)
    ]
    other = sorted({name for name, _ in weights[0].items() ^ weights[1].items()})
    if apart or other or first.model.tied != found.model.tied:
        what = apart[0] if apart else f"weights ({other[0] if other else 'which of them are tied'})"
        raise SpecError(
            f"{path}: its {what} differ from those of {where}: only weights of the same network"
            " and task have a mean"
        )


def _known(found: checkpoints.Checkpoint) -> dict[str, Any]:
    """What gives the weights their meaning, by what it is called."""
    named = {"tokenizer": TOKENIZER, "source tokenizer": SOURCE_TOKENIZER}
    return {
        "model": found.spec.get("model"),
        "task": found.spec.get("task", {}).get("type"),
        "labels and facts of the data": found.info,
        **{what: found.assets.get(name) for what, name in named.items()},
        "special tokens": found.assets.get(SPECIAL_TOKENS),
    }


def _trained_on(read: Sequence[checkpoints.Checkpoint]) -> dict[str, bytes]:
    """All items that any of them was trained on; nothing where one of them does not know."""
    sets = [load_trained_on(found.assets.get(TRAINED_ON)) for found in read]
    return {TRAINED_ON: dump(joined(s for each in sets for s in each))} if all(sets) else {}


def _measured(paths: Sequence[Path], path: Path, device: str, doubt: str) -> Average:
    """All on the validation split of the first one's data, where it can be read."""
    spec = opening.read_spec(path)
    if VALIDATION not in of_checkpoint(spec, path).data.splits(Path()):
        return Average(tuple(paths), note="; ".join(filter(None, (doubt, "no validation data"))))
    found = []
    try:
        for each in (*paths, path):
            result = evaluate_items(
                each, [], VALIDATION, device, _nothing, _nothing, generate=False
            )
            found.append(estimates(result.loaded.task, result.measures))
    except BigmodelError as error:
        return Average(
            tuple(paths), note="; ".join(filter(None, (doubt, f"not measured: {error}")))
        )
    return Average(tuple(paths), tuple(found[:-1]), found[-1], doubt)


def _nothing(text: str) -> None:
    """What there is to say about the data was said in training."""
