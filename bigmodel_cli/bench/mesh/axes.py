"""How many processes a run has along each axis of its mesh, as `--mesh` names them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

from pydantic import ValidationError

from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.parallel import SharingOptions
from bigmodel_cli.spec import Spec

NAMES = ("replicate", "shard", "context", "tensor")
"""From the outermost in: processes along the last have neighbouring ranks."""
MOST = 1 << 20
_ONE = re.compile(r"([a-z]+)=([0-9]{1,7})")
EXAMPLE = "write --mesh shard=64,tensor=8, of replicate, shard, context and tensor"


@dataclass(frozen=True)
class Axes:
    """Processes along each axis."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def count(self) -> int:
        """All processes."""
        return self.samples * self.context * self.tensor

    @property
    def samples(self) -> int:
        """Those that take different samples."""
        return self.replicate * self.shard

    def size(self, axis: str) -> int:
        """Processes along an axis."""
        return int(asdict(self)[axis])

    @property
    def parts(self) -> int:
        """Processes that one copy of the weights is divided among by FSDP2: where it is, those with
        positions of the same samples too.
        """
        return self.shard * self.context if self.shard > 1 else 1

    @property
    def copies(self) -> int:
        """Copies of the weights."""
        return self.samples * self.context // self.parts

    def ring(self, axis: str) -> tuple[int, int]:
        """(how many exchange along an axis, how far apart the ranks of two neighbours are): whole
        gradients along "replicate", weights and their gradients along "shard".
        """
        rings = {
            "tensor": (self.tensor, 1),
            "context": (self.context, self.tensor),
            "shard": (self.parts, self.tensor),
            "replicate": (self.copies, self.tensor * self.parts),
        }
        return rings[axis]

    def __str__(self) -> str:
        named = [f"{name} {size:,}" for name in NAMES if (size := self.size(name)) > 1]
        return " x ".join(named) or "one process"


ALONE = Axes()
"""One process."""


def axes_said(options: SharingOptions, replicate: int, shard: int) -> Axes:
    """Those of `train.parallel`, of which two may have been auto."""
    return Axes(replicate, shard, int(dict(options).get("context", 1)), options.tensor)


def axes_of(text: str) -> Axes:
    """Of "shard=64,tensor=8"; an axis that is not named has one process. Raises `SpecError`."""
    found: dict[str, int] = {}
    for one in text.replace(" ", "").lower().split(","):
        match = _ONE.fullmatch(one)
        if match is None:
            raise SpecError(f"--mesh {text}: {EXAMPLE}")
        name, size = match[1], int(match[2])
        if name not in NAMES:
            hint = did_you_mean(name, NAMES)
            raise SpecError(f"--mesh {text}: {name} is not one of {', '.join(NAMES)}{hint}")
        if name in found:
            raise SpecError(f"--mesh {text}: {name} is named twice")
        if not size:
            raise SpecError(f"--mesh {text}: {name}=0; the least is 1")
        found[name] = size
    axes = replace(ALONE, **found)
    if axes.count > MOST:
        raise SpecError(f"--mesh {text}: {axes.count:,} processes; the most are {MOST:,}")
    return axes


def divided_by(spec: Spec, axes: Axes) -> Spec:
    """The spec with these axes in `train.parallel`. Raises `SpecError` for one that training does
    not have, and for another one that the spec has.
    """
    for name, value in dict(spec.train.parallel).items():
        if name not in NAMES and type(value) is int and value > 1:
            raise SpecError(f"train.parallel.{name}: it is not planned on paper; set it to 1")
    given = {name: axes.size(name) for name in NAMES}
    if given["context"] == 1 and "context" not in SharingOptions.model_fields:
        del given["context"]
    try:
        options = SharingOptions.model_validate({**dict(spec.train.parallel), **given})
    except ValidationError as error:
        named = sorted({str(fault["loc"][0]) for fault in error.errors() if fault["loc"]})
        raise SpecError(
            f"--mesh: train.parallel has no {', '.join(named)}; leave that out of the mesh"
        ) from None
    train = spec.train.model_copy(update={"parallel": options})
    return spec.model_copy(update={"train": train})
