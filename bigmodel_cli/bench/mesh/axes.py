"""How many processes a run has along each axis of its mesh, as `--mesh` names them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.parallel import SharingOptions
from bigmodel_cli.spec import Spec

NAMES = ("replicate", "shard", "tensor")
"""From the outermost in: processes along the last have neighbouring ranks."""
MOST = 1 << 20
_ONE = re.compile(r"([a-z]+)=([0-9]{1,7})")
EXAMPLE = "write --mesh shard=64,tensor=8, of replicate, shard and tensor"


@dataclass(frozen=True)
class Axes:
    """Processes along each axis."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def count(self) -> int:
        """All processes."""
        return self.samples * self.tensor

    @property
    def samples(self) -> int:
        """Those that take different samples."""
        return self.replicate * self.shard

    def size(self, axis: str) -> int:
        """Processes along an axis."""
        return int(asdict(self)[axis])

    def ring(self, axis: str) -> tuple[int, int]:
        """(how many exchange along an axis, how far apart the ranks of two neighbours are): whole
        gradients along "replicate", weights and their gradients along "shard".
        """
        rings = {
            "tensor": (self.tensor, 1),
            "shard": (self.shard, self.tensor),
            "replicate": (self.replicate, self.tensor * self.shard),
        }
        return rings[axis]

    def __str__(self) -> str:
        named = [f"{name} {size:,}" for name in NAMES if (size := self.size(name)) > 1]
        return " x ".join(named) or "one process"


ALONE = Axes()
"""One process."""


def axes_said(options: SharingOptions, replicate: int, shard: int) -> Axes:
    """Those of `train.parallel`, of which two may have been auto."""
    return Axes(replicate, shard, options.tensor)


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
    """The spec with these axes in `train.parallel`. Raises `SpecError` for another one that it has,
    which is not planned.
    """
    options = spec.train.parallel
    for name, unplanned, plain in (
        ("experts", options.experts > 1, "1"),
        ("context", options.context > 1, "1"),
        ("reduce", options.reduce != "fp32", "fp32"),
        ("offload", options.offload, "false"),
    ):
        if unplanned:
            raise SpecError(f"train.parallel.{name}: it is not planned on paper; set it to {plain}")
    given = {name: axes.size(name) for name in NAMES}
    train = spec.train.model_copy(update={"parallel": spec.train.parallel.model_copy(update=given)})
    return spec.model_copy(update={"train": train})
