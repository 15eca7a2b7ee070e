"""What config.json says of a head for whole items: one class, a set of labels, or numbers.

transformers has one class for the three (BertForSequenceClassification); `problem_type` and the
number of outputs tell them apart, as they do there.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.folder import CONFIG, read_json
from bigmodel_cli.errors import CheckpointError

ONE_OF, SETS, NUMBERS = (
    "single_label_classification", "multi_label_classification", "regression",
)  # fmt: skip
"""The values of `problem_type`."""
REGRESSION, MULTILABEL = "regression", "multilabel"
"""The `task.type`s that heads of the class for labels may also be for."""
ACTIVATION = "sbert_ce_default_activation_function"
SENTENCES = "sentence_transformers"
"""Keys of the sentence-transformers library's CrossEncoder, which reads pairs of texts."""
IDENTITY = "torch.nn.modules.linear.Identity"


def labelled(config: Config) -> str:
    """REGRESSION or MULTILABEL; "" where an item has one class.

    One output is a number unless `problem_type` says otherwise. Raises `CheckpointError`.
    """
    kind, count = config.maybe("problem_type", str), len(_named(config))
    config.only("problem_type", ONE_OF, SETS, NUMBERS)
    if kind == ONE_OF and count == 1:
        raise CheckpointError(
            f"{config.file}: problem_type: {ONE_OF}, and there is one output; repair the file:"
            f" {NUMBERS}, or {SETS}"
        )
    if kind == SETS:
        return MULTILABEL
    if kind == NUMBERS or (kind is None and count == 1):
        return REGRESSION
    return ""


def facts_of_labels(config: Config, task: str) -> dict[str, Any]:
    """The names of the outputs, as DatasetInfo keeps them. Raises `CheckpointError`.

    Numbers come from the network as they are: their mean is 0 and their deviation 1.
    """
    names = class_names(config)
    if task != REGRESSION:
        return {"classes": names, "label_sets": task == MULTILABEL}
    if (said := _activation(config.values)) != IDENTITY and len(names) == 1:
        config.note(
            f"one number: it is given as it comes from the network; a CrossEncoder of"
            f" sentence-transformers applies {said.rpartition('.')[2]} to it"
        )
    return {
        "targets": names,
        "target_mean": (0.0,) * len(names),
        "target_std": (1.0,) * len(names),
    }


def _activation(values: dict[str, Any]) -> str:
    """What sentence-transformers' CrossEncoder applies to one output."""
    newer = values.get(SENTENCES)
    found = newer.get("activation_fn") if isinstance(newer, dict) else None
    found = found or values.get(ACTIVATION) or "torch.nn.modules.activation.Sigmoid"
    return IDENTITY if values.get("problem_type") == NUMBERS and not newer else str(found)[:100]


def class_names(config: Config) -> tuple[str, ...]:
    """The labels in the order of the logits, by `id2label`; `num_labels` alone gives numbers.

    Raises `CheckpointError`.
    """
    named = _named(config)
    names = [named.get(str(i)) for i in range(len(named))]
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{config.file}: id2label: it does not name each of 0 to {len(named) - 1}"
        )
    counts = Counter(names)
    found = [f"{name} ({i})" if counts[name] > 1 else str(name) for i, name in enumerate(names)]
    if twice := sorted(str(name) for name, count in counts.items() if count > 1):
        if len(set(found)) < len(found):
            raise CheckpointError(f"{config.file}: id2label: {twice[0]!r} is given twice")
        config.note(
            f"id2label names classes alike ({', '.join(twice[:3])}): they are told apart by their"
            " numbers, in brackets"
        )
    return tuple(found)


def _named(config: Config) -> dict[str, Any]:
    """`id2label`, or the names that transformers gives outputs of which the number is known."""
    named = config.maybe("id2label", dict)
    if named is not None:
        return named
    return {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", int, 2))}


def class_labels(info: DatasetInfo) -> dict[str, Any]:
    """The inverse: what config.json says of the outputs."""
    if not info.outputs:
        return {}
    names = {str(i): name for i, name in enumerate(info.classes or info.targets)}
    said: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
    }
    if info.label_sets:
        said["problem_type"] = SETS
    if info.targets:
        said["problem_type"] = NUMBERS
    return said


def of_pairs() -> dict[str, Any]:
    """What config.json says of a model that reads pairs of texts: outputs are as they come."""
    return {SENTENCES: {"activation_fn": IDENTITY}}


def label_columns(folder: Path, info: DatasetInfo) -> dict[str, Any]:
    """Options of a table of texts with such labels: the third column and those after it.

    A CrossEncoder reads the first two, and others the first.
    """
    values = read_json(folder, CONFIG)
    found: dict[str, Any] = {"text": [0, 1] if {ACTIVATION, SENTENCES} & values.keys() else [0]}
    if info.targets:
        return {**found, "targets": [2 + i for i in range(len(info.targets))]}
    return {**found, "label": 2, **({"label_separator": "|"} if info.label_sets else {})}
