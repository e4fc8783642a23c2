"""Chromium, driven over HTTP: just what tests of pages need, without a package for it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"right": "\ue014", "left": "\ue012", "home": "\ue011", "end": "\ue010"}


def programs() -> tuple[str, str] | None:
    """Paths of the driver and the browser, None where one is missing."""
    driver = shutil.which("chromedriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    return (driver, browser) if driver and browser else None


class Browser:
    """One session."""

    def __init__(self, root: str, session: str) -> None:
        self._root, self._session = root, session

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return _call(method, f"{self._root}/session/{self._session}{path}", body)

    def open(self, path: Path) -> None:
        self.call("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a function body in the page."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        return self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, *keys: str) -> None:
        text = "".join(KEYS.get(k, k) for k in keys)
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys into whatever has the focus."""
        events = [{"type": kind, "value": KEYS.get(k, k)} for k in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": events}]})

    def console(self) -> list[dict[str, Any]]:
        """What the console has said since the last call."""
        return self.call("POST", "/se/log", {"type": "browser"})

    def picture(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def browser(width: int = 1400, height: int = 1500) -> Iterator[Browser]:
    """A headless browser; nothing of it is left behind."""
    found = programs()
    if found is None:
        raise RuntimeError("expected chromium and chromedriver; on Debian: apt-get install chromium chromium-driver")
    driver = subprocess.Popen([found[0], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    session = None
    try:
        root = f"http://127.0.0.1:{_port(driver)}"
        flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}")
        options = {"binary": found[1], "args": [f"--{flag}" for flag in flags]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = _call("POST", f"{root}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = Browser(root, made["sessionId"])
        yield session
    finally:
        if session is not None:
            session.call("DELETE", "")
        driver.terminate()
        driver.wait(timeout=20)
        driver.stdout.close()


def _port(driver: subprocess.Popen) -> int:
    for line in driver.stdout:
        if match := re.search(r"started successfully on port (\d+)", line):
            return int(match[1])
    raise RuntimeError("chromedriver ended without naming its port")


def _call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["value"]
