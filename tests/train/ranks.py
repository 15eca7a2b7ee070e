"""Trains the cases of a file in as many processes as torchrun starts; one of them writes.

Called as `ranks.py CASES OUT`; CASES is JSON, a list of {"name", "spec", "steps", ...}:
`from` names a state that an earlier case kept, `steps` is the step to end at, `evaluate` asks
for metrics too (a list: with these text metrics), `short` is a process with little memory, which
with `failing` it lacks within a backward pass, `beside` sums gradients beside backward passes,
`bucket` is of so many bytes, `late` gives a weight its gradient in two pieces. OUT gets of each
NAME.json, with the losses and the hashes of each process's weights, and NAME.pt, the state.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from every_case import every_case
from torch.utils.checkpoint import checkpoint

from bigmodel_cli import distributed
from bigmodel_cli.distributed import tensors
from bigmodel_cli.evaluation.evaluator import evaluate_split, values_of
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train import summing, together
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.train.smaller import fitted
from bigmodel_cli.train.step import train_step

CPU = torch.device("cpu")
BUCKET = tensors.BUCKET
FIXED = {"precision": "fp32", "memory_format": "contiguous", "compile": "off", "seed": 5}


class Failing(torch.autograd.Function):
    """Has no memory for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:
        raise MemoryError


class Short(Objective):
    """Has memory for four rows; with `failing` it is missed in the middle of a backward pass."""

    failing = False

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
        if len(batch["key"]) <= 4:
            return super().__call__(model, batch)
        if not self.failing:
            raise MemoryError
        hook = model.blocks[0].register_forward_hook(lambda module, given, x: Failing.apply(x))
        try:
            return super().__call__(model, batch)
        finally:
            hook.remove()


class Watched(summing.Summing):
    """Notes whether gradients came late."""

    late = False

    def join(self, late: bool) -> None:
        Watched.late |= late
        super().join(late)


class Late(Objective):
    """Some of the last weight's gradient comes by a backward pass within the backward pass."""

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
        loss, n = super().__call__(model, batch)
        last = [*model.parameters()][-1]
        one = torch.ones((), requires_grad=True)
        more = checkpoint(lambda x: (last.square() * x).sum(), one, use_reentrant=True)
        return loss + more, n


def trained(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a case to its last step."""
    given = case["spec"]
    spec = from_dict({**given, "train": {**FIXED, "steps": 200, **given["train"]}})
    opened = open_run(spec)
    task = open_task(opened.spec, opened.data)
    spec, model, state, loader = set_up(opened, task, CPU, None)
    objective = objective_of(spec, task, opened.data.info, {}, model, CPU)
    if "from" in case:
        kept = torch.load(out / f"{case['from']}.pt", weights_only=True)
        state.restore(kept["weights"], kept["train"], kept["values"])
    if "short" in case and distributed.world().rank == case["short"]:
        objective = Short(objective.task)
        objective.failing = "failing" in case
    if "late" in case:
        objective = Late(objective.task)
    together.Summing, Watched.late = Watched, False
    summing.overlaps = lambda device: "beside" in case
    tensors.BUCKET = case.get("bucket", BUCKET)
    found, said, options = [], list[str](), spec.train
    for micro_batches in loader.steps(state.batch, case["steps"] + state.passed):
        lr = options.optimizer.lr * options.schedule.factor(state.step, 200)
        attempt = partial(train_step, state, objective, options, device=CPU, lr=lr)
        found.append(
            attempt(micro_batches)
            if options.deterministic
            else fitted(
                state.division,
                state.batch,
                options,
                micro_batches,
                lambda parts, attempt=attempt: attempt(parts),
                said.append,
                distributed.most,
            )
        )
        state.step += 1
        if found[-1].finite:
            state.after_step()
    loader.close()
    weights, train, values = state.capture()
    if distributed.world().first:
        kept = {"weights": weights, "train": train, "values": values}
        torch.save(kept, out / f"{case['name']}.pt")
    scores: dict[str, Any] = {}
    if case.get("evaluate"):
        loaded = Loaded(out, spec, opened.data.info, task, model, CPU, opened.data.assets())
        texts = case["evaluate"] if isinstance(case["evaluate"], list) else None
        judged = evaluate_split(loaded, opened.data.split("val"), texts, case.get("rows"))
        scores = {"metrics": values_of(task, judged.measures), "columns": judged.columns}
    own = hashlib.sha256(b"".join(bytes(_numbers(t)) for t in weights.values())).hexdigest()
    return {
        "losses": [r.loss for r in found],
        "norms": [r.norm for r in found],
        "sizes": [r.size for r in found],
        "finite": [r.finite for r in found],
        "said": said,
        "late": Watched.late,
        "pieces": {str(k): n for k, n in state.division.pieces.items()},
        "scale": state.loss_scale.value,
        "hashes": [x.decode() for x in distributed.gathered_bytes(own.encode())],
        **scores,
    }


def _numbers(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


every_case(trained)
