"""Whether the processes of a run began alike: with one spec, one data set, and the same weights.

Each computes the same update from the same sums. So what differs at the start differs for good, and
nothing would tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.differences import leaves, written
from bigmodel_cli.distributed import from_first, gathered_values, world
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.resumed_spec import Previous
from bigmodel_cli.train.state import TrainState

START = "init.checkpoint"
"""May be in another place on another machine; its weights are compared."""


def check_spec(spec: Spec, previous: Previous | None) -> None:
    """Raise `SpecError` where another process was given another spec than the first one, or found
    another checkpoint to go on from.

    Data may be in another place on each machine; its fingerprint is compared.
    """
    places = (START, *(f"data.{name}" for name in spec.data.paths))
    options = {
        path: value
        for path, value in leaves(spec.to_dict())
        if not any(f"{path}.".startswith(f"{place}.") for place in places)
    }
    if previous is not None and previous.path is not None:
        options["checkpoint to go on from"] = previous.path.name
    _check(options, "start all of them with the same spec, options and run directory")


def check_start(fingerprint: str, state: TrainState) -> None:
    """Let all processes go on from the first one's weights, which are theirs but for machines that
    round otherwise.

    Raises `SpecError` where another one has other data.
    """
    if world().alone:
        return
    _check({"fingerprint of its data": fingerprint}, "all of them are to read the same data")
    if state.sharding is not None:  # each has a part of its own
        return
    tensors = [*state.model.state_dict().values(), *state.ema.values()]
    tensors += state.optimizer.state_dict().values()
    every = gathered_values(digest(tensors))
    others = [rank for rank, found in enumerate(every) if found != every[0]]
    if others:
        say(
            f"weights: process {others[0]} of {len(every)} began with others than the first one"
            " (another processor or library, or another checkpoint); the first one's are taken"
        )
        from_first(tensors)


def _check(own: Mapping[str, Any], remedy: str) -> None:
    """Raise `SpecError`, the same in all processes, where one has other values than the first."""
    text = json.dumps(own, sort_keys=True)
    if len(set(gathered_values(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    every = [json.loads(found) for found in gathered_values(text)]
    for rank, other in enumerate(every):
        for name in sorted(other.keys() | every[0].keys()):
            values = [found.get(name) for found in (other, every[0])]
            if values[0] != values[1]:
                theirs, first = map(written, values)
                raise SpecError(
                    f"process {rank} of {len(every)} has another {name} than the first one:"
                    f" {theirs}, and that has {first}; {remedy}"
                )


def digest(tensors: Sequence[Tensor]) -> str:
    """Of the tensors' bits: the sum of each as integers, which a device computes in one pass."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        t.detach().contiguous().reshape(-1).view(kinds[t.element_size()]).sum(dtype=torch.int64)
        for t in tensors
    ]
    found = torch.stack(sums).tolist() if sums else []
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
