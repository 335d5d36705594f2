"""Open a page in a real browser, through its debugging pipe: what it looked like and what it did.

    with Browser() as browser:
        page = browser.open(path, width=360, dark=True)

Chromium in any of its packagings will do; `find()` says which one there is.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable",
    "google-chrome", "chrome", "msedge",
)  # fmt: skip
SECONDS = 600  # how long a test waits before it calls something lost


def find() -> str | None:
    """Return the path of a browser, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """Hold what a page did while it was open."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class Browser:
    """Own a browser's process."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        # Its commands come on descriptor 3 and its answers go to 4: the ends given to it lie higher,
        # so that placing one does not cover the other.
        read_end, self._to = os.pipe()
        self._from, write_end = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read_end, write_end)]
        self._process = subprocess.Popen(
            [path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-extensions", f"--user-data-dir={self._profile.name}",
             "--remote-debugging-pipe", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, at) for at, end in enumerate(ends, start=3)],
            close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        for end in (read_end, write_end, *ends):
            os.close(end)
        self._buffer = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._call("Browser.close")
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._profile.cleanup()

    def open(self, path: Path, *, width: int, dark: bool, ask: dict[str, str]) -> Page:
        """Open a file at a width in CSS pixels; `ask` names expressions to be evaluated in it."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", session)
        self._call(
            "Emulation.setDeviceMetricsOverride", session,
            width=width, height=800, deviceScaleFactor=2, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        self.navigate(session, path.as_uri())
        page = Page()
        for name, expression in ask.items():
            answer = self._call(
                "Runtime.evaluate", session, expression=expression, returnByValue=True
            )
            assert "exceptionDetails" not in answer, answer
            page.values[name] = answer["result"].get("value")
        for event in self._events:
            about = event.get("params", {})
            if event["method"] == "Network.requestWillBeSent":
                page.requests.append(about["request"]["url"])
            elif event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                page.complaints.append(json.dumps(about))
            elif event["method"] == "Log.entryAdded":
                page.complaints.append(about["entry"]["text"])
        self._call("Target.closeTarget", targetId=target)
        return page

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def navigate(self, session: str, url: str) -> None:
        """Go to an address, and wait until that page, and not the one before it, has loaded."""
        self._call("Page.setLifecycleEventsEnabled", session, enabled=True)
        loader = self._call("Page.navigate", session, url=url)["loaderId"]
        while not any(_has_loaded(event, loader) for event in self._events):
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            piece = os.read(self._from, 1 << 16)
            assert piece, f"the browser ended with {self._process.poll()}"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


def _has_loaded(event: dict[str, Any], loader: str) -> bool:
    about = event.get("params", {})
    return (
        event["method"] == "Page.lifecycleEvent"
        and (about["loaderId"], about["name"]) == (loader, "load")
    )  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """What a screen reader is told of an element. values: its states and relations, by name."""

    role: str
    name: str
    values: dict[str, Any]


def _heard(node: dict[str, Any]) -> Heard:
    values = {each["name"]: each["value"].get("value") for each in node.get("properties", ())}
    return Heard(node["role"]["value"], node.get("name", {}).get("value", ""), values)


class Tab:
    """A page that is open, and what went wrong in it."""

    def __init__(
        self, opened: Browser, url: str, *, width: int, dark: bool, height: int = 800
    ) -> None:
        self._browser = opened
        target = opened._call("Target.createTarget", url="about:blank")["targetId"]
        attached = opened._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            opened._call(f"{domain}.enable", self._session)
        opened._call(
            "Emulation.setDeviceMetricsOverride", self._session,
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        opened._call("Emulation.setEmulatedMedia", self._session, features=[scheme])
        opened._events.clear()
        self.go(url)

    def go(self, url: str) -> None:
        """Go to an address."""
        self._browser.navigate(self._session, url)

    def ask(self, expression: str) -> Any:
        """Give the value of an expression."""
        answer = self._browser._call(
            "Runtime.evaluate", self._session, expression=expression, returnByValue=True,
            awaitPromise=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.ask(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Write a question."""
        self.ask("document.getElementById('question').focus()")
        self._browser._call("Input.insertText", self._session, text=text)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self._browser._call(
                "Input.dispatchKeyEvent", self._session, type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, text="\r" if key == "Enter" and kind == "keyDown" else "",
                modifiers=8 if shift else 0,
            )  # fmt: skip

    def heard(self) -> list[Heard]:
        """List what a screen reader knows of the page: everything that has a role, in order."""
        tree = self._browser._call("Accessibility.getFullAXTree", self._session)["nodes"]
        return [_heard(node) for node in tree if not node["ignored"]]

    def went_wrong(self) -> list[str]:
        """List what the page complained of."""
        found = []
        for event in self._browser._events:
            about = event.get("params", {})
            if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                found.append(str(about))
            elif event["method"] == "Log.entryAdded":
                found.append(about["entry"]["text"])
        return found

    def picture(self) -> bytes:
        """Give what it looks like, as PNG."""
        answer = self._browser._call("Page.captureScreenshot", self._session, format="png")
        return base64.b64decode(answer["data"])

    def requests(self) -> list[str]:
        """List the addresses it has asked."""
        sent = [e for e in self._browser._events if e["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]
