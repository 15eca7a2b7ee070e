"""The same spec with several seeds: one run after another."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.errors import BigmodelError, NumericsError, SpecError, Stopped
from bigmodel_cli.rundir import has_begun
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.request import Request
from bigmodel_cli.train.resume import begun_runs
from bigmodel_cli.train.session import train
from bigmodel_cli.train.signals import Signals

RUNS = Path("runs")


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
    number = _round(request, specs)
    requests = {seed: _request(request, seed, number) for seed in specs}
    for done, (seed, spec) in enumerate(specs.items()):
        signals.again()
        say(f"seed {seed}: run {done + 1} of {len(specs)}")
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
                f"seed {seed}: failed; {done} of {len(specs)} runs are done, and to go on"
                f" with all: {_again(request)}"
            )
            raise
        gc.collect()  # the next run needs the memory


def _request(request: Request, seed: int, number: int) -> Request:
    """The request for one seed's run, in the round of that number.

    Raises `SpecError` where its folder holds another run.
    """
    name = f"{request.name}-seed{seed}"
    if request.out is not None:
        path = request.out.with_name(f"{request.out.name}-seed{seed}")
    else:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
    if request.out is not None and not request.resume and os.path.isdir(path) and os.listdir(path):
        raise SpecError(
            f"{path}: holds a run (or other files) already; go on with it by --resume, or choose"
            " another --out"
        )
    return replace(request, name=name, out=path, resume=request.resume and has_begun(path))


def _round(request: Request, seeds: Iterable[int]) -> int:
    """The number of the newest round, to resume, or else of the next one.

    All runs of a round have the same number, NAME-seed0-2 and so on, so that no round is taken for
    a part of another.
    """
    begun = [n for seed in seeds for n in begun_runs(RUNS, f"{request.name}-seed{seed}")]
    newest = max(begun, default=0)
    if not request.resume or request.out is not None:
        return newest + 1
    if newest > 1:
        say(f"--resume: the newest round is number {newest}: {request.name}-seedN-{newest}")
    return max(newest, 1)


def _again(request: Request) -> str:
    return shlex.join([*request.words, *([] if request.resume else ["--resume"])])
