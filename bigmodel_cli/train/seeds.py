"""The same spec with several seeds: one run after another."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.errors import BigmodelError, NumericsError, SpecError, Stopped
from bigmodel_cli.rundir import has_begun
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.resume import latest_directory
from bigmodel_cli.train.session import Request, train
from bigmodel_cli.train.signals import Signals


@dataclass(frozen=True)
class Outcome:
    """A seed's result: its checkpoint, or the error of a loss that was not finite."""

    seed: int
    checkpoint: Path | None = None
    fault: str = ""


def train_seeds(specs: Mapping[int, Spec], request: Request, signals: Signals) -> Iterator[Outcome]:
    """Train each seed's spec.

    A loss that is not finite is reported and the other seeds go on; any other error ends all.

    Raises what `train` raises; completed runs are kept. With `request.resume` finished runs stay,
    and others resume or start.
    """
    requests = {seed: _request(request, seed) for seed in specs}
    for number, (seed, spec) in enumerate(specs.items(), 1):
        signals.again()
        say(f"seed {seed}: run {number} of {len(specs)}")
        try:
            yield Outcome(seed, train(spec, requests[seed], signals))
        except NumericsError as error:
            say(f"seed {seed}: failed with status {error.status}: {error}")
            yield Outcome(seed, fault=str(error))
        except Stopped as stop:
            raise Stopped(
                f"seed {seed}: {stop}; for all seeds: {_again(request)}", stop.signal_number
            ) from None
        except BigmodelError:
            say(
                f"seed {seed}: failed; {number - 1} of {len(specs)} runs are done, and to go on"
                f" with all: {_again(request)}"
            )
            raise
        gc.collect()  # the next run needs the memory


def _request(request: Request, seed: int) -> Request:
    """The request for one seed's run.

    Raises `SpecError` where its folder holds another run.
    """
    name, out = (
        f"{request.name}-seed{seed}",
        request.out and request.out.with_name(f"{request.out.name}-seed{seed}"),
    )
    if request.resume:
        try:
            path = out or latest_directory(Path("runs"), name)
        except SpecError:
            return replace(request, name=name, resume=False)
        return replace(request, name=name, out=path, resume=has_begun(path))
    if out is not None and os.path.isdir(out) and os.listdir(out):
        raise SpecError(
            f"{out}: holds a run (or other files) already; go on with it by --resume, or choose"
            " another --out"
        )
    return replace(request, name=name, out=out)


def _again(request: Request) -> str:
    return shlex.join([*request.words, *([] if request.resume else ["--resume"])])
