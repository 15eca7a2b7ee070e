"""What a part promises to its users, checked on tiny inputs in well under a second.

`bigmodel check` checks it, and so does training before it begins.

A part that breaks a promise gives silently wrong results: one that looks ahead learns to copy, one
whose cache differs generates other text than it was trained for. Options may exempt themselves from
a promise by naming it in `not_promised`.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.models import ModelOptions, sees_both_sides
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.contract import looks_ahead
from bigmodel_cli.plugin_faults import line_of
from bigmodel_cli.plugins import PluginPart, parts_from_files
from bigmodel_cli.promises import forms, sequence, training
from bigmodel_cli.promises.trial import LONGEST, Broken, Trial, first_line

WIDTHS = (12, 10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Tried in order, since heads or groups may not divide all of them."""

REMEDIES = {
    "builds": (
        "raise ValueError('OPTION: what is wrong') for what cannot be built, and nothing else"
    ),
    "shape": "return what has the shape of x, for any batch and any length, 1 included",
    "meta": (
        "make every tensor on the device of x or of the weights, and read no values while building"
    ),
    "repeatable": "draw numbers only where self.training is True",
    "saved": (
        "keep all that is drawn or learnt in nn.Parameter or register_buffer, under names that do"
        " not change"
    ),
    "gradients": (
        "let every nn.Parameter have a part in the output, not detached, or set requires_grad to"
        " False"
    ),
    "rows": "let no row look at another row of the batch",
    "causal": (
        "let position t see positions up to t alone, at any length, or set `causal: false` as an"
        " option for encoders"
    ),
    "cache": (
        "keep in the cache all that later positions need; sequence.offset positions came before;"
        " rows come first in its tensors"
    ),
    "documents": (
        "heed sequence.segment_ids: positions of other numbers are not to be seen, and counting"
        " starts anew in each segment"
    ),
    "positions": "compute each position by itself, whatever stands beside it",
}
"""What to do about a broken promise; the promises in the order in which they are checked."""

_COMMON: dict[str, Callable[[Trial], None]] = {
    "shape": forms.shape,
    "meta": forms.meta,
    "repeatable": forms.repeatable,
    "saved": forms.saved,
    "gradients": forms.gradients,
    "rows": forms.rows,
}
OF_SLOT: dict[str, dict[str, Callable[[Trial], None]]] = {
    "mixer": {"causal": sequence.causal, "cache": sequence.cache, "documents": sequence.documents},
    "ffn": {"positions": forms.positions},
    "norm": {"positions": forms.positions},
    "position": {"cache": sequence.offset, "documents": sequence.documents},
}
ONE_SIDED = ("causal", "cache")
"""Promises of causal parts only."""


@dataclass(frozen=True)
class Finding:
    """One promise of a part: whether it is kept, and a remark.

    None: it is not made, or does not apply.
    """

    promise: str
    kept: bool | None
    text: str = ""

    def cells(self) -> list[str]:
        """The promise, whether it is kept, and the remark, for people."""
        none = "not here" if self.promise == "builds" else "not promised"
        return [
            self.promise,
            none if self.kept is None else "kept" if self.kept else "NOT KEPT",
            self.text,
        ]

    def line(self) -> str:
        """The same as a line."""
        promise, word, text = self.cells()
        return f"{promise}: {word}{f' ({text})' if text else ''}"


def check_part(
    slot: str, options: Any, causal: bool = True, widths: Iterable[int] = WIDTHS
) -> list[Finding]:
    """Check each promise of a part for `slot`; `causal` is that of the mixer's layer.

    The random state is restored.
    """
    load_torch()
    unknown = [name for name in options.not_promised if name not in REMEDIES]
    if unknown:
        hint = did_you_mean(unknown[0], REMEDIES)
        raise SpecError(
            f"{type(options).__name__}.not_promised: {unknown[0]!r} is not a promise{hint}"
        )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = _built(slot, options, causal, widths)
        if isinstance(trial, Finding):
            return [trial]
        found = [Finding("builds", True, f"width {trial.dim}")]
        if trial.part is None:
            return [Finding("builds", True, "nothing to build")]
        if fault := _does_not_run(trial):
            return [*found, Finding("shape", False, f"{fault}; nothing else was tried")]
        tries = {**_COMMON, **OF_SLOT[slot]}
        two_sided = not causal or looks_ahead(options)
        for name in REMEDIES:
            if name in tries and not (two_sided and name in ONE_SIDED):
                found.append(
                    _tried(options, name, REMEDIES[name], partial(_renewed, tries[name], trial))
                )
    return found


def check_other(kind: str, options: Any) -> list[Finding]:
    """Check each promise of an optimizer or a schedule."""
    load_torch()
    tries = training.TRIES[kind].items()
    return [
        _tried(options, name, training.REMEDIES[name], partial(attempt, options))
        for name, attempt in tries
    ]


def _renewed(attempt: Callable[[Trial], None], trial: Trial) -> None:
    trial.renew()
    attempt(trial)


def _does_not_run(trial: Trial) -> str:
    """What a part raises when called as a block calls it, or ""."""
    try:
        trial.renew()
        trial.run(trial.input())
    except Broken:
        return ""
    except Exception as error:  # whatever a user's own code raises
        return _raised(trial.options, error)
    return ""


def _raised(options: Any, error: Exception) -> str:
    """'my_part.py:21: AttributeError: ...': the error, at the line of the part's own file."""
    file = Path(str(sys.modules[type(options).__module__].__file__))
    line = line_of(file, error)
    text = f"{type(error).__name__}: {first_line(error)}"
    return f"{file.name}{line}: {text}" if line else text


def _tried(options: Any, name: str, remedy: str, attempt: Callable[[], None]) -> Finding:
    if name in options.not_promised:
        return Finding(name, None, "its options say so")
    try:
        attempt()
    except Broken as error:
        return Finding(name, False, f"{error}; {remedy}")
    except Exception as error:  # whatever a user's own code raises
        return Finding(name, False, f"{_raised(options, error)}; {remedy}")
    return Finding(name, True)


def _built(slot: str, options: Any, causal: bool, widths: Iterable[int]) -> Trial | Finding:
    """The part at the first width at which it can be built."""
    refused = ""
    for width in widths:
        try:
            return Trial(slot, options, LayerContext(width, LONGEST, 0, 2, causal))
        except ValueError as error:  # how a part reports that something does not fit
            refused = first_line(error)
        except Exception as error:
            return Finding("builds", False, f"{_raised(options, error)}; {REMEDIES['builds']}")
    return Finding("builds", None, f"{refused}; so at every width that was tried")


def check_parts(model: ModelOptions) -> None:
    """Check the parts of plugins in a model's options.

    Raises `SpecError` naming each broken promise, and the remedy.
    """
    for part in parts_from_files(model, "model"):
        if part.slot not in OF_SLOT:
            continue
        causal = not sees_both_sides(model, part.path)
        widths = dict.fromkeys([*WIDTHS, model.width() or WIDTHS[0]])
        broken = []
        for finding in check_part(part.slot, part.options, causal, widths):
            # what cannot be built is reported when the model is built
            if finding.kept is None and finding.promise != "builds":
                say(
                    f"{part.path}: {part.options.type} does not promise {finding.promise!r}: its"
                    " options say so"
                )
            elif finding.kept is False:
                broken.append(finding)
        _refuse(part, broken)


def check_plugins(spec: Any) -> None:
    """Check the parts of plugins in a spec, and their optimizer and schedule.

    Raises `SpecError` as `check_parts` does.
    """
    check_parts(spec.model)
    for part in parts_from_files(spec.train, "train"):
        if part.slot in training.TRIES:
            _refuse(part, [f for f in check_other(part.slot, part.options) if f.kept is False])


def _refuse(part: PluginPart, broken: list[Finding]) -> None:
    if broken:
        lines = "".join(f"\n  {finding.line()}" for finding in broken)
        file, article = shlex.quote(str(part.file)), "an" if part.slot == "optimizer" else "a"
        raise SpecError(
            f"{part.path}: {part.options.type} ({part.file}) does not keep what {article}"
            f" {part.slot} promises; mend it, or name the promise in not_promised of its options"
            f" (`bigmodel check {file}` tries all):{lines}"
        )


__all__ = [
    "OF_SLOT",
    "REMEDIES",
    "Finding",
    "check_other",
    "check_part",
    "check_parts",
    "check_plugins",
]
