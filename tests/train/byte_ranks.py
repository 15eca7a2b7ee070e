"""Counts the bytes that each process of a training holds and sends: `byte_ranks.py CASES OUT`.

CASES is JSON, a list of {"name", "spec"}. Memory is that of live storages of this process's tensors
after each operation; what is sent is counted where tensors are given to torch.distributed, as rings
send it. The first process writes of each case NAME.json, with the most of all processes.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from every_case import every_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigmodel_cli import distributed
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.train.step import train_step

CPU = torch.device("cpu")
STEPS = 2
sent: Counter[str] = Counter()
inside = [False]


def local(tensor: Any) -> torch.Tensor:
    """What of a tensor is in this process's memory."""
    found: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def stored(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory that the tensors keep, each once."""
    kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in map(local, tensors)}
    return sum(kept.values())


class Living(TorchDispatchMode):
    """The most bytes of all storages that were seen and live, without those that are known."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.seen: dict[int, Any] = {}
        self.known: set[int] = set()
        self.keep: list[Any] = []  # so that their numbers are not given to others
        self.know(known)
        self.peak = 0

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """These do not count."""
        for storage in (local(t).untyped_storage() for t in tensors):
            self.known.add(storage._cdata)
            self.keep.append(storage)

    def now(self) -> int:
        """Bytes: storages may have been emptied, or filled again, since they were seen."""
        alive = [ref() for ref in self.seen.values()]
        return sum(storage.nbytes() for storage in alive if storage is not None)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops._c10d_functional.all_gather_into_tensor.default:  # a DTensor's
            sent["gathered"] += (args[1] - 1) * size(args[0])
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = local(leaf).untyped_storage()
                key = storage._cdata
                if key not in self.known and key not in self.seen:
                    self.seen[key] = weakref.ref(storage, lambda _, k=key: self.seen.pop(k, None))
        self.peak = max(self.peak, self.now())
        return result


def size(tensor: Any) -> int:
    """Bytes of a tensor's numbers."""
    return int(tensor.numel() * tensor.element_size())


def ring(group: Any) -> tuple[int, float]:
    """(processes, the part of a whole that each sends)."""
    count = dist.get_world_size(group)
    return count, (count - 1) / count


RINGS: dict[str, tuple[str, Callable[[tuple[Any, ...], Any], float]]] = {
    "all_reduce": ("summed", lambda given, group: 2 * ring(group)[1] * size(given[0])),
    "all_gather": ("others", lambda given, group: (ring(group)[0] - 1) * size(given[1])),
    "all_gather_into_tensor": ("gathered", lambda given, group: ring(group)[1] * size(given[0])),
    "reduce_scatter_tensor": ("scattered", lambda given, group: ring(group)[1] * size(given[1])),
}
RINGS["all_gather_single"] = RINGS["all_gather_into_tensor"]
RINGS["reduce_scatter_single"] = RINGS["reduce_scatter_tensor"]


def counting(name: str, exchange: Callable[..., Any]) -> Callable[..., Any]:
    """The exchange, whose bytes are counted once, whatever it calls."""
    way, bytes_of = RINGS[name]

    @functools.wraps(exchange)
    def counted(*given: Any, **more: Any) -> Any:
        if inside[0]:
            return exchange(*given, **more)
        named = [more[n] for n in ("output_tensor", "output", "input_tensor", "input") if n in more]
        sent[way] += bytes_of((*given, *named), more.get("group"))  # type: ignore[assignment]
        inside[0] = True
        try:
            return exchange(*given, **more)
        finally:
            inside[0] = False

    return counted


for own in RINGS:
    if hasattr(dist, own):
        setattr(dist, own, counting(own, getattr(dist, own)))


def trained(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a case, and measure its last step."""
    given = case["spec"]
    spec = from_dict({**given, "train": {**given["train"], "steps": STEPS}})
    opened = open_run(spec)
    task = open_task(opened.spec, opened.data)
    spec, model, state, loader = set_up(opened, task, CPU, None)
    objective = objective_of(spec, task, opened.data.info, {}, model, CPU)
    kept = list(state.kept.named().values())
    moments, averages = list(state.optimizer.state_dict().values()), list(state.ema.values())
    gradients = 0
    update = state.optimizer.step

    def step(*values: Any) -> None:
        nonlocal gradients
        gradients = stored(p.grad for p in state.optimizer.moving() if p.grad is not None)
        update(*values)

    state.optimizer.step = step  # type: ignore[method-assign]
    living = Living([*kept, *model.buffers(), *moments, *averages])
    for micro_batches in loader.steps(0, STEPS):
        living.know(t for batch in micro_batches for t in batch.values())
        living.peak = 0
        sent.clear()
        with living:
            train_step(state, objective, spec.train, micro_batches, CPU, 1e-3)
        state.step += 1
        state.after_step()
    loader.close()
    found = {
        "weights": stored(kept),
        "gradients": gradients,
        "optimizer state": stored(moments),
        "averages": stored(averages),
        "added": living.peak,
        **{way: int(sent[way]) for way in ("summed", "gathered", "scattered", "others")},
    }
    every = distributed.gathered_values(found)
    return {name: max(values[name] for values in every) for name in found}


every_case(trained)
