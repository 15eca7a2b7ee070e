"""Saves a state of several processes in several ways; called as `saving_ranks.py CASES OUT`.

CASES is JSON, a list of {"name", "spec"}. Each trains two steps, and saves to OUT/NAME/WAY: `first`
(the first process writes all), `parts` (each writes some files, and training waits) and `aside`
(so, from a copy, while the state changes). OUT/NAME.json gets who wrote which file, what a full
disk of the last process came to, and what was said where the last process does not see the folder.
Nothing may be unpickled.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from every_case import every_case

from bigmodel_cli import checkpoints, distributed, failpoints
from bigmodel_cli.checkpoints import shards
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.parted import is_part
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train import saving
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.saving import Saver
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.train.step import train_step

CPU = torch.device("cpu")
FIXED = {"precision": "fp32", "memory_format": "contiguous", "compile": "off", "seed": 5}
shards.SHARD_SIZE = 9_000  # several files


def watch(event: str, given: tuple[Any, ...]) -> None:
    """No pickle is read."""
    if event == "pickle.find_class":
        raise AssertionError("a pickle was read")


def trained(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a little, save in all ways."""
    given, world = case["spec"], distributed.world()
    spec = from_dict({**given, "train": {**FIXED, "steps": 200, **given["train"]}})
    opened = open_run(spec)
    task = open_task(opened.spec, opened.data)
    spec, model, state, loader = set_up(opened, task, CPU, None)
    objective = objective_of(spec, task, opened.data.info, {}, model, CPU)
    for micro_batches in loader.steps(0, 2):
        train_step(state, objective, spec.train, micro_batches, CPU, 1e-3)
        state.step += 1
        state.after_step()
    loader.close()
    found: dict[str, Any] = {"writers": {}, "said": []}
    place, last = out / case["name"], world.rank == world.size - 1

    def contents() -> checkpoints.Contents:
        weights, train, values = state.capture()
        head = state.step, weights, train, values, spec.recorded(), opened.data.info.to_json()
        return checkpoints.Contents(*head, own=frozenset({"rng.cpu"}))

    def saved(folder: Path, option: Any, large: int) -> Saver:
        saving.DIVIDED = large
        saver = Saver(option, folder, found["said"].append)
        saver.save(contents(), lambda path: None)
        return saver

    parts = any(map(is_part, contents().model.values()))
    saved(place / "first", "off", 10**12)
    saved(place / "parts", "off", 0)
    for way, divided in (("first", False), ("parts", True)):
        save = checkpoints.Save(place / way, contents(), together=parts or divided, divided=divided)
        found["writers"][way] = dict(zip(save.sizes, save.writers, strict=True))
    saver = saved(place / "aside", "on", 0)
    kept = [*state.kept.named().values(), *state.optimizer.state_dict().values()]
    kept += state.ema.values()
    torch._foreach_add_([tensor.detach() for tensor in kept], 1)  # as the next step does
    saver.wait()
    folder, nodes = place / "again", []
    for change in (0, 0, 1):  # the same step: written, found to be there, replaced
        torch._foreach_add_([tensor.detach() for tensor in kept], change)
        saved(folder, "on", 0).wait()
        nodes.append(checkpoints.steps(folder)[0].stat().st_ino)
    found["nodes"] = nodes
    found["full"] = full(lambda folder: saved(folder, "on", 0).wait(), place / "full", last)
    found["full, waiting"] = full(lambda folder: saved(folder, "off", 0), place / "full", last)
    here = Path.cwd()
    if last:
        os.chdir(out / "elsewhere")
    saved(Path("unseen"), "off", 0)
    os.chdir(here)
    return found


def full(save: Any, folder: Path, last: bool) -> list[str]:
    """What each process says where the disk of the last one is full."""
    failpoints._reached.clear()
    if last:
        os.environ["BIGMODEL_FAILPOINT"] = "checkpoint.writing:ENOSPC:2"
    said = ""
    try:
        save(folder)
    except BigmodelError as error:
        said = f"{error.status} {error}"
    os.environ.pop("BIGMODEL_FAILPOINT", None)
    return [str(x) for x in distributed.gathered_values(said)]


def main() -> None:
    """All cases, in which nothing is unpickled."""
    Path(sys.argv[2], "elsewhere").mkdir(exist_ok=True)
    os.chdir(sys.argv[2])
    distributed.begin(CPU, 120)
    pickle.load = pickle.loads = torch.load = lambda *given, **more: watch("pickle.find_class", ())
    sys.addaudithook(watch)
    every_case(trained)


main()
