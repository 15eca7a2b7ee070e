"""A process that is asked through pipes: how its end and its faults are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bigmodel_cli.bench.pipes import FAULTS, Fault, Piped
from bigmodel_cli.errors import BigmodelError, ResourceError

MODULE = """\
import json, os, signal, sys, time
from bigmodel_cli.bench.pipes import answering, faulty
from bigmodel_cli.errors import DataError

def serve():
    answers = answering()
    print("not an answer")
    for line in sys.stdin:
        given = json.loads(line)
        if given == "fault":
            print(json.dumps(faulty(DataError("3: bad"))), file=answers, flush=True)
        elif given == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif given == "leave":
            sys.exit(7)
        else:
            print(json.dumps({"answer": given, "group": os.getpgrp()}), file=answers, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
"""


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Piped:
    (tmp_path / "answering_module.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Piped("answering_module", 0.2)


def test_answers_alone_come_through_and_an_end_is_waited_for_in_vain(piped: Piped) -> None:
    answer = piped.ask({"a": [1, None]})
    assert answer["answer"] == {"a": [1, None]}
    assert answer["group"] != os.getpgrp()
    with pytest.raises(Fault) as raised:
        piped.ask("fault")
    assert (type(raised.value.again("x: ")).__name__, str(raised.value.again("x: "))) == (
        "DataError",
        "x: 3: bad",
    )
    start = time.perf_counter()
    piped.close()  # it sleeps, and ignores SIGTERM
    assert time.perf_counter() - start < 20
    assert piped.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("request_", "said"), [("die", "it was killed"), ("leave", "status 7")])
def test_how_it_ended_is_said(request_: str, said: str, piped: Piped) -> None:
    for _ in range(2):  # also asked again
        with pytest.raises(ResourceError, match=said):
            piped.ask(request_)
    piped.terminate()
    piped.close()


def test_each_fault_is_of_its_class_and_a_stranger_a_plain_one() -> None:
    for kind in FAULTS:
        assert type(Fault(kind.__name__, "m").again()) is kind
    assert type(Fault("Else", "m").again()) is BigmodelError
