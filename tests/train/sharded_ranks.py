"""Trains the cases of a file in as many processes as torchrun starts, with weights in parts.

Called as `sharded_ranks.py CASES OUT`; CASES is JSON, a list of {"name", "spec", "steps", "from",
"save"}: `from` is a folder with checkpoints, of which the last is gone on with, `save` one to save
to at the end, `steps` the step to end at. The first process writes NAME.json with the losses and
what a process keeps, and NAME.safetensors with all weights, to OUT. Nothing may be unpickled.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from every_case import every_case
from safetensors.torch import save_file

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.assemble import later
from bigmodel_cli.evaluation.evaluator import evaluate_split, values_of
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.sharding import shown, whole
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.train.step import train_step

CPU = torch.device("cpu")
FIXED = {"precision": "fp32", "memory_format": "contiguous", "compile": "off", "seed": 5}


class Refusing(pickle.Unpickler):
    """Reads no pickle."""

    def load(self) -> Any:
        raise AssertionError("a pickle was read")


def refused(*given: Any, **more: Any) -> Any:
    """Instead of reading a pickle."""
    raise AssertionError("a pickle was read")


def stored(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory that the tensors keep, each once."""
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(kept.values())


def trained(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a case to its last step."""
    given = case["spec"]
    spec = from_dict({**given, "train": {**FIXED, "steps": 200, **given["train"]}})
    opened = open_run(spec)
    task = open_task(opened.spec, opened.data)
    saved = None
    if "from" in case:
        saved = checkpoints.read(checkpoints.steps(Path(case["from"]))[-1], train_state=True)
    spec, model, state, loader = set_up(opened, task, CPU, saved)
    objective = objective_of(spec, task, opened.data.info, {}, model, CPU)
    if saved is not None:
        state.restore(saved.model, saved.train, saved.state)
    found, options, most = [], spec.train, 0
    for micro_batches in loader.steps(state.batch, case["steps"]):
        lr = options.optimizer.lr * options.schedule.factor(state.step, 200)
        found.append(train_step(state, objective, options, micro_batches, CPU, lr))
        state.step += 1
        state.after_step()
    loader.close()
    kept = [*state.kept.named().values(), *state.optimizer.state_dict().values()]
    most = stored([*kept, *state.ema.values()])
    weights, train, values = state.capture()
    if "save" in case:
        contents = checkpoints.Contents(
            state.step, weights, train, values, spec.recorded(), opened.data.info.to_json()
        )
        with shown([*weights.values(), *train.values()]):
            if distributed.world().first:
                checkpoints.save(Path(case["save"]), contents)
        distributed.wait_for_all()
    every = {name: whole(t).detach().clone().contiguous() for name, t in weights.items()}
    if distributed.world().first:
        save_file(every, out / f"{case['name']}.safetensors")
    scores: dict[str, Any] = {}
    if case.get("evaluate"):
        loaded = Loaded(out, spec, opened.data.info, task, model, CPU, opened.data.assets())
        with state.averaged():
            judged = evaluate_split(loaded, opened.data.split("val"), None, None)
        scores = {"metrics": values_of(task, judged.measures)}
    return {
        "losses": [r.loss for r in found],
        "norms": [r.norm for r in found],
        "bytes": [int(x) for x in distributed.gathered(torch.tensor(most))],
        **scores,
    }


def main() -> None:
    """All cases, in which nothing is unpickled."""
    later.LARGE = 64  # bytes, so that most weights are drawn when they are divided
    pickle.load = pickle.loads = torch.load = refused
    pickle.Unpickler = Refusing  # type: ignore[misc]
    every_case(trained)


main()
