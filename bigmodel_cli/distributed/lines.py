"""Connections between the first process and each other one, which carry JSON, a message a line."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from bigmodel_cli.errors import ProcessError

MOST_BYTES = 1 << 28
"""Of one message."""
GREETING = 5.0
"""Seconds in which a process that connects must say who it is, and is answered."""
AGAIN = 0.1
"""Seconds before a process looks again for the first."""

Message = dict[str, Any]


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rest = connection, b""
        self.heard = time.monotonic()

    def send(self, message: Message) -> None:
        """Send a message; a connection that is gone is noticed where it is read."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """The messages that are here now; None where the other end is gone, or talks nonsense."""
        try:
            data = self.connection.recv(1 << 20)
        except OSError:
            return None
        if not data or len(self.rest) + len(data) > MOST_BYTES:
            return None
        self.heard = time.monotonic()
        *whole, self.rest = (self.rest + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in whole]
        except (ValueError, TypeError, RecursionError):
            return None

    def close(self) -> None:
        """Close this end."""
        with contextlib.suppress(OSError):
            self.connection.close()


def connected(
    rank: int,
    size: int,
    put: Callable[[str, str], None],
    get: Callable[[str], str],
    seconds: float,
) -> tuple[dict[int, Line], str]:
    """The lines of this process by rank: to all others in the first, else to the first; and a text
    that is this meeting's own.

    `put` and `get` share text by name between all of them. What an earlier meeting left there,
    before a restart, is tried until the first process has written anew. Raises `ProcessError` where
    one does not come in time.
    """
    if rank:
        end = time.monotonic() + seconds
        while True:
            host, port, token = json.loads(get("address"))
            if (line := _greeted(host, port, token, rank)) is not None:
                line.connection.settimeout(seconds)
                return {0: line}, token
            if time.monotonic() > end:
                raise ProcessError(
                    f"the first process, at {host}:{port}, did not answer within {seconds:g} s"
                )
            time.sleep(AGAIN)
    host, token = _own_address(), secrets.token_hex(16)
    with socket.create_server((host if host.startswith("127.") else "", 0), backlog=size) as server:
        put("address", json.dumps([host, server.getsockname()[1], token]))
        return _accepted(server, size, token, seconds), token


def _greeted(host: str, port: int, token: str, rank: int) -> Line | None:
    """A line to the first process, which has answered; None where another or none is there."""
    with contextlib.suppress(OSError):
        connection = socket.create_connection((host, port), GREETING)
        line = _ready(connection, GREETING)
        line.send({"token": token, "rank": rank})
        answer = b""
        with contextlib.suppress(OSError):
            while len(answer) < len(token) and (byte := connection.recv(1)):
                answer += byte  # and none of what comes after
        if answer == token.encode():
            return line
        line.close()
    return None


def _accepted(server: socket.socket, size: int, token: str, seconds: float) -> dict[int, Line]:
    """The lines to all others, which come in any order; who does not know the token is refused."""
    lines: dict[int, Line] = {}
    end = time.monotonic() + seconds
    while len(lines) < size - 1:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except OSError:
            missing = next(r for r in range(1, size) if r not in lines)
            raise ProcessError(
                f"process {missing} of {size} did not come within {seconds:g} s; see what it said,"
                " and start all of them again"
            ) from None
        line = _ready(connection, GREETING)
        greeting = (line.receive() or [{}])[0]
        who = int(greeting.get("rank") or 0)
        known = secrets.compare_digest(str(greeting.get("token")), token)
        if not known or who not in range(1, size) or who in lines:
            line.close()
            continue
        connection.settimeout(seconds)
        with contextlib.suppress(OSError):
            connection.sendall(token.encode())
        lines[who] = line
    return dict(sorted(lines.items()))


def _ready(connection: socket.socket, seconds: float) -> Line:
    connection.settimeout(seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Line(connection)


def _own_address() -> str:
    """Where the other processes reach this one: by the way that leads to MASTER_ADDR."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with contextlib.suppress(OSError):
        family, kind, protocol, _, place = socket.getaddrinfo(
            master, 9, socket.AF_INET, socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            own = str(probe.getsockname()[0])
        return master if own.startswith("127.") and master != "localhost" else own
    return master
