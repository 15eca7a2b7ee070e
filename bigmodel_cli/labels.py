"""Labels that travel by name: the rows of a head for classes that a checkpoint knows already."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model

UNNAMED = re.compile(r"LABEL_\d+")
"""What published models call classes without a name."""
SHOWN = 5


@dataclass(frozen=True)
class KeptRows:
    """A tensor with a row for each class: those that the checkpoint has, the others as drawn."""

    drawn: Tensor
    before: list[int]
    now: list[int]

    def __call__(self, stored: Tensor) -> Tensor:
        """The checkpoint's tensor -> this model's."""
        new = self.drawn.to(stored.device, stored.dtype, copy=True)
        new[self.now] = stored[self.before]
        return new


def kept_rows(
    model: Model, info: DatasetInfo, before: DatasetInfo, stored: Mapping[str, Tensor]
) -> dict[str, KeptRows]:
    """How the tensors of the head become this model's where some classes have the same names.

    {} where none has, or the head is of another form: all of it is then drawn.
    """
    shared = [c for c in info.classes if c in before.classes and not UNNAMED.fullmatch(c)]
    _say_near(info.classes, before.classes)
    if not shared or info.spelling or before.spelling or info.label_sets != before.label_sets:
        return {}
    own = {n: t for n, t in model.state_dict().items() if below(n, model.output_layers())}
    if not own or any(name not in stored for name in own):
        return {}
    last = next(reversed(own)).rpartition(".")[0]
    by_class = [name for name in own if name.rpartition(".")[0] == last]
    for name, tensor in own.items():
        wanted = tensor.shape
        if name in by_class:
            wanted = torch.Size((len(before.classes), *tensor.shape[1:]))
        if (len(tensor) != len(info.classes) and name in by_class) or stored[name].shape != wanted:
            return {}
    now, then = ([classes.index(c) for c in shared] for classes in (info.classes, before.classes))
    new = [name for name in info.classes if name not in shared]
    say(
        f"the head's rows of {_listed(shared)} are the checkpoint's, by name"
        + (f"; newly initialised: {_listed(new)}" if new else "")
    )
    return {name: KeptRows(own[name].detach().clone(), then, now) for name in by_class}


def _say_near(now: Sequence[str], before: Sequence[str]) -> None:
    """Warn about classes that differ from one of the checkpoint's in how they are written alone."""
    known = {_plain(name): name for name in before}
    near = [(n, known[_plain(n)]) for n in now if n not in before and _plain(n) in known]
    if near:
        pairs = _listed([f"{new!a} is not {old!a}" for new, old in near])
        say(
            f"warning: classes are matched by name, and {pairs}: the head begins anew for them;"
            " write them alike if they are the same"
        )


def _plain(name: str) -> str:
    """A name without what is easily written in two ways: case, blanks, forms of a character."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
