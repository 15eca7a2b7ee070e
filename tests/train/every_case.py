"""What a program that torchrun starts does with the cases that it is given: PROGRAM CASES OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli import distributed
from bigmodel_cli.errors import BigmodelError

CPU = torch.device("cpu")


def every_case(trained: Callable[[dict[str, Any], Path], dict[str, Any]]) -> None:
    """All cases, one after the other; the first process writes what came out."""
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
