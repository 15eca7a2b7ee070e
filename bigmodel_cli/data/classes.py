"""Classes of the data: how many items have each, and their numbers in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bigmodel_cli.console import listed
from bigmodel_cli.data.base import Say
from bigmodel_cli.data.order import Ints
from bigmodel_cli.errors import SpecError, did_you_mean


def count_classes(labels: Ints, classes: Sequence[str]) -> tuple[int, ...]:
    """How many of the labels (N,), or of the sets (N, C), have each class; () where there are no
    classes.
    """
    if labels.ndim > 1:
        return tuple(labels.sum(0, dtype=np.int64).tolist()) if classes else ()
    return tuple(np.bincount(labels, minlength=len(classes)).tolist()) if classes else ()


def classes_in(labels: Ints) -> list[int]:
    """The numbers of the classes that occur in labels (N,), or in sets (N, C)."""
    numbers: list[int] = (
        np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(0))
    ).tolist()
    return numbers


def say_lacking(
    split: str, unit: str, there: Iterable[int], classes: Sequence[str], say: Say
) -> None:
    """Warn about classes of which a split has no items; `there` are the numbers of those that it
    has.
    """
    present = set(there)
    missing = [name for number, name in enumerate(classes) if number not in present]
    if missing:
        which = "class" if len(missing) == 1 else f"{len(missing)} classes:"
        say(f"warning: the {split} split has no {unit} of {which} {', '.join(missing[:5])}")


def numbers_of(classes: Sequence[str], known: Sequence[str], used: Sequence[str]) -> Ints:
    """(len(classes),) the checkpoint's number of each class, -1 for one that it does not know.

    Raises `SpecError` naming the classes that are `used` and that it does not know.
    """
    if used and not known:
        raise SpecError(
            "the checkpoint knows no classes; leave the data's labels out (data.label: null,"
            " data.labels: false), or finetune it on them first: bigmodel finetune --from CKPT SPEC"
        )
    number = {name: index for index, name in enumerate(known)}
    unknown = [name for name in used if name not in number]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        shown = ", ".join(map(repr, unknown[:5])) + more + did_you_mean(unknown[0], known)
        raise SpecError(
            f"the data has classes that the checkpoint does not know: {shown}; it knows"
            f" {listed(known, 10)}; finetuning teaches others: bigmodel finetune --from CKPT SPEC"
        )
    return np.array([number.get(name, -1) for name in classes], np.int64)
