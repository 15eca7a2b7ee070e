"""Processes find one another, whatever an earlier meeting left behind."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bigmodel_cli.distributed.lines import connected


def test_what_an_earlier_meeting_left_is_not_taken_for_this_one() -> None:
    """torchrun keeps its store over a restart: first nobody is there, then a stranger."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        shared = {"address": json.dumps(["127.0.0.1", 1, "old"])}
        looked = threading.Event()

        def get(name: str) -> str:
            looked.set()
            return shared[name]

        def hang_up() -> None:
            connection, _ = stranger.accept()
            connection.recv(100)
            connection.close()

        with ThreadPoolExecutor(3) as threads:
            second = threads.submit(connected, 1, 2, shared.__setitem__, get, 20.0)
            assert looked.wait(10)
            shared["address"] = json.dumps(["127.0.0.1", port, "old"])
            threads.submit(hang_up).result(10)
            time.sleep(0.05)
            first = threads.submit(connected, 0, 2, shared.__setitem__, get, 20.0)
            (own, meeting), (other, same) = first.result(20), second.result(20)
    assert (list(own), list(other), meeting == same) == ([1], [0], True)
    own[1].send({"kind": "beat"})
    assert other[0].receive() == [{"kind": "beat"}]
    own[1].close()
    other[0].close()
