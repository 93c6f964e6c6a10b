"""A real headless Chromium, driven over two pipes by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser of RAYMERGE_CHROMIUM, or one on the PATH."""
    named = os.environ.get("RAYMERGE_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Chromium:
    """A browser that runs."""

    send: IO[bytes]
    receive: IO[bytes]
    events: list[dict[str, Any]] = field(default_factory=list)
    """What it told without being asked, in order."""
    number: int = 0

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Ask for something, and wait for the answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            told = self._next()
            if told.get("id") == self.number:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]
            self.events.append(told)

    def wait_for(self, method: str, session: str) -> None:
        """Go on once it has told of an event."""
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            read += byte
        told: dict[str, Any] = json.loads(read)
        return told


@dataclass
class Page:
    """A page that is open, at a width and in a colour scheme."""

    browser: Chromium
    session: str

    def call(self, method: str, **params: Any) -> Any:
        """A call about this page."""
        return self.browser.call(method, self.session, **params)

    def __call__(self, script: str) -> Any:
        """What an expression of JavaScript gives; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """What came of events of these names."""
        self("1")
        mine = (e for e in self.browser.events if e.get("sessionId") == self.session)
        return [event["params"] for event in mine if event["method"] in methods]

    def names(self, role: str) -> list[str]:
        """Accessible names of all that has a role, as a screen reader is told them."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        seen = (n for n in nodes if not n["ignored"] and n.get("role", {}).get("value") == role)
        return [node.get("name", {}).get("value", "") for node in seen]

    def screenshot(self, path: Path) -> None:
        """The page from top to bottom."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(program: str) -> Iterator[Chromium]:
    """Chromium, until the block ends."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    with tempfile.TemporaryDirectory(prefix="raymerge-chromium-") as profile:
        # It reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{their_in} 4>&{their_out}'
        process = subprocess.Popen(
            ["bash", "-c", command, "-", program, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        with os.fdopen(our_out, "wb") as send, os.fdopen(our_in, "rb") as receive:
            running = Chromium(send, receive)
            try:
                yield running
            finally:
                running.call("Browser.close")
                process.wait(timeout=30)


@contextmanager
def page(
    browser: Chromium,
    path: Path,
    *,
    width: int = 1280,
    height: int = 800,
    dark: bool = False,
    script: bool = True,
) -> Iterator[Page]:
    """A file as a page, once all of it is there."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    opened = Page(browser, session)
    for domain in ("Page", "Network", "Log", "Runtime"):
        opened.call(f"{domain}.enable")
    opened.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=width < 500,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.call("Emulation.setEmulatedMedia", features=[scheme])
    opened.call("Emulation.setScriptExecutionDisabled", value=not script)
    opened.call("Page.navigate", url=path.as_uri())
    browser.wait_for("Page.loadEventFired", session)
    try:
        yield opened
    finally:
        browser.call("Target.closeTarget", targetId=target)
