"""Headless Chromium through its DevTools protocol over a pipe: the standard library is enough."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser")) if p), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio",
    "--proxy-server=127.0.0.1:9", "--remote-debugging-pipe",
)  # fmt: skip
"""The proxy is a port where nothing listens: what the browser itself would fetch fails at once."""


class Browser:
    """One page. `events` are those that the browser sent, in order."""

    def __init__(self, width: int = 1280, height: int = 860) -> None:
        assert CHROMIUM is not None
        self.folder = tempfile.mkdtemp(prefix="bigmodel-browser-")
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from it
        low = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (ours[0], theirs[1])]

        def given() -> None:
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}", f"--window-size={width},{height}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=given,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        for fd in (*low, ours[0], theirs[1]):
            os.close(fd)
        self.to, self.back = ours[1], theirs[0]
        self.rest, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; raises `RuntimeError` for what the browser refuses."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        while True:
            found = self._read(60)
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _read(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            if not select.select([self.back], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has left")
            self.rest += part
        first, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def open(self, path: Path) -> None:
        """Load a file and wait until it has been drawn."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited; raises `RuntimeError` for what it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 30) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key, by the name that events give it."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        more = {"key": key, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **more, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the mouse: "mouseMoved", "mousePressed", "mouseReleased", "mouseWheel"."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def faults(self) -> list[str]:
        """What the page complained of: errors, and reports of its policy."""
        kinds = ("Runtime.exceptionThrown", "Audits.issueAdded", "Log.entryAdded")
        return [json.dumps(e)[:600] for e in self.events if e["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses that were asked for, other than the page itself and what it carries."""
        asked = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        found = [str(e["params"]["request"]["url"]) for e in asked]
        return [url for url in found if not url.startswith(("file:", "data:"))]

    def close(self) -> None:
        """End the browser and remove its folder."""
        self.session = ""
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        for fd in (self.to, self.back):
            os.close(fd)
        shutil.rmtree(self.folder, ignore_errors=True)
