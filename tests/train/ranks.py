"""Trains the cases of a file in as many processes as torchrun starts; one of them writes.

Called as `ranks.py CASES OUT`; CASES is JSON, a list of {"name", "spec", "steps", "from", "keep"}:
`from` names a state that an earlier case kept, `steps` is the step to end at. OUT gets for each
NAME.json with the losses, the norms, the hashes of each process's weights, and NAME.pt with the
state.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli import distributed
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.evaluation.evaluator import evaluate_split, values_of
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.train.step import train_step

CPU = torch.device("cpu")
FIXED = {"precision": "fp32", "memory_format": "contiguous", "compile": "off", "seed": 5}


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
    found, options = [], spec.train
    for micro_batches in loader.steps(state.batch, case["steps"] + state.passed):
        lr = options.optimizer.lr * options.schedule.factor(state.step, 200)
        found.append(train_step(state, objective, options, micro_batches, CPU, lr))
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
        "scale": state.loss_scale.value,
        "hashes": [x.decode() for x in distributed.gathered_bytes(own.encode())],
        **scores,
    }


def _numbers(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def main() -> None:
    """All cases, one after the other."""
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    world = distributed.begin(CPU, 120)
    for case in cases:
        try:
            found = trained(case, out)
        except BigmodelError as error:  # the same in all processes, or the others would wait
            found = {"error": str(error)}
        if world.first:
            (out / f"{case['name']}.json").write_text(json.dumps(found))
        distributed.wait_for_all()
    distributed.end()


main()
