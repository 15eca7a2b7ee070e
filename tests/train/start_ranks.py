"""Sets up the trainings of a file in as many processes as torchrun starts: what memory that takes.

Called as `start_ranks.py CASES OUT`; CASES is JSON, a list of {"name", "spec", "save", "from"}:
`save` is a folder to save to at once, `from` one whose checkpoint is gone on with. OUT gets of each
NAME.json: bytes of all weights, and by how many bytes the set-up let each process's memory grow at
its most.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import torch
from every_case import every_case

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.device import give_freed_memory_back, keep_freed_memory
from bigmodel_cli.sharding import shown
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.session import set_up
from bigmodel_cli.train.setup import open_run, open_task

CPU = torch.device("cpu")


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM, the most since `forget`."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def trained(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Set a case up."""
    spec = from_dict(case["spec"])
    opened = open_run(spec)
    task = open_task(opened.spec, opened.data)
    saved = None
    if "from" in case:
        saved = checkpoints.read(checkpoints.steps(Path(case["from"]))[-1], train_state=True)
    gc.collect()
    give_freed_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # forget the most so far
    before = memory("VmRSS")
    spec, model, state, loader = set_up(opened, task, CPU, saved)
    if saved is not None:
        state.restore(saved.model, saved.train, saved.state)
    grown = memory("VmHWM") - before
    loader.close()
    weights, train, values = state.capture()
    if "save" in case:
        contents = checkpoints.Contents(
            0, weights, train, values, spec.recorded(), opened.data.info.to_json()
        )
        with shown([*weights.values(), *train.values()]):
            if distributed.world().first:
                checkpoints.save(Path(case["save"]), contents)
        distributed.wait_for_all()
    return {
        "whole": sum(p.numel() * p.element_size() for p in model.parameters()),
        "grown": [int(x) for x in distributed.gathered(torch.tensor(grown))],
    }


keep_freed_memory()
every_case(trained)
