"""Drives a headless Chromium by its DevTools protocol, for tests and screenshots.

The network is cut: it reaches this machine alone. It records every request and every
error, so that a test can show that a page needs no other host.

    with Browser() as browser:
        browser.open("http://127.0.0.1:8000")
        browser.wait("document.title == 'Playground'")
        browser.screenshot(Path("start.png"))
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-port=0",
    "--js-flags=--max-lazy",  # most pages run little of their scripts
)


def find_chromium() -> str | None:
    """Returns the path of Chromium; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """A page of a headless Chromium.

    Args:
        width: The width of the page in pixels.
        height: The height of the page in pixels.
        dark: Whether the page is told that the user prefers dark colours.

    Attributes:
        requests: The address of every request of the page.
        errors: Exceptions, errors of the console and failed requests.
    """

    def __init__(
        self, width: int = 1280, height: int = 860, dark: bool = False
    ) -> None:
        self.size, self.dark = (width, height), dark
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._ids = itertools.count(1)

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        chromium = find_chromium()
        if chromium is None:
            raise FileNotFoundError(f"There is none of {', '.join(_NAMES)} here.")
        with ExitStack() as stack:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            )
            flags = [*_FLAGS, f"--user-data-dir={folder}", "about:blank"]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(
                [chromium, *flags], stdout=quiet, stderr=quiet, stdin=quiet
            )
            stack.callback(_stop, process)
            address = _page_address(Path(folder), process)
            self._socket = stack.enter_context(
                connect(address, max_size=None, proxy=None, compression=None)
            )
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.send(f"{domain}.enable")
            width, height = self.size
            screen = {"width": width, "height": height, "deviceScaleFactor": 1}
            self.send("Emulation.setDeviceMetricsOverride", mobile=False, **screen)
            scheme = "dark" if self.dark else "light"
            feature = {"name": "prefers-color-scheme", "value": scheme}
            self.send("Emulation.setEmulatedMedia", features=[feature])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, address: str) -> None:
        """Opens a page and waits until it has loaded."""
        self.send("Page.navigate", url=address)
        here = f"location.href.startsWith({json.dumps(address)})"
        self.wait(f"{here} && document.readyState == 'complete'")

    def evaluate(self, script: str) -> Any:
        """Returns the value of a JavaScript expression; a promise is awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60.0) -> Any:
        """Waits until a JavaScript expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(condition)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"Not true within {seconds:g} s: {condition}. Errors: {self.errors}"
                )
            time.sleep(0.05)
        return value

    def type(self, selector: str, text: str) -> None:
        """Clicks into an element, replaces its text by typing."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"(e => {{ e.focus(); e.select(); }})({found})")
        for character in text:
            self.send("Input.insertText", text=character)

    def press(self, key: str, code: int) -> None:
        """Presses a key, such as `press("Tab", 9)`."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Clicks at a place of an element, given as shares of its width and height."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'nearest'}})")
        box = self.evaluate(
            f"(r => [r.x, r.y, r.width, r.height])({found}.getBoundingClientRect())"
        )
        place = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                button="left",
                clickCount=1,
                **place,
            )

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the page."""
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        )

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command, records the events before its result, and returns it."""
        number = next(self._ids)
        self._socket.send(
            json.dumps({"id": number, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._record(message.get("method"), message.get("params", {}))

    def _record(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Network.loadingFailed" and not about.get("canceled"):
            self.errors.append(
                f"request failed: {about.get('errorText')} {about.get('blockedReason')}"
            )
        elif event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(
                details.get("exception", {}).get("description", details["text"])
            )
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(
                f"{about['entry']['text']} {about['entry'].get('url', '')}"
            )


def _page_address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Returns the address of the first page, once Chromium has written its port."""
    port, end = folder / "DevToolsActivePort", time.monotonic() + 60
    while not (port.exists() and port.read_text().strip()):
        if time.monotonic() > end or process.poll() is not None:
            raise TimeoutError("Chromium did not start.")
        time.sleep(0.05)
    number = port.read_text().splitlines()[0]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{number}/json/list") as answer:
        pages = json.load(answer)
    return next(
        page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
