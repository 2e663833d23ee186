"""A headless Chromium, spoken to through its DevTools pipe: no driver, no port, no network."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser of its own.

    Raises TimeoutError if the browser does not answer and RuntimeError if it refuses.
    """

    def __init__(self, executable: str, patience: float = 20.0) -> None:
        self.patience = patience
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # well above 4, so that putting one in place cannot close another
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_browser, from_browser)]

        def connect() -> None:
            os.dup2(ends[0], 3)  # Chromium reads commands from 3 and writes answers to 4
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [executable, *OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_browser, from_browser, *ends):
            os.close(fd)
        self.messages: list[str] = []  # what pages said in the console
        self._buffer = b""
        self._number = 0
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """Send a command and wait for its answer; of events only what the console says is kept."""
        self._number += 1
        message: dict = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.patience
        while True:
            while b"\0" not in self._buffer:
                if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(f"{method}: no answer within {self.patience} s")
                data = os.read(self._read, 1 << 16)
                if not data:
                    raise RuntimeError(f"{method}: the browser has ended")
                self._buffer += data
            answer, _, self._buffer = self._buffer.partition(b"\0")
            found = json.loads(answer)
            self.messages += _said(found)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key, such as ArrowRight, 39, in the element that has the focus."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def wait_for(self, expression: str) -> object:
        """Evaluate until the value is true; a page that is being left has none."""

        def value_now() -> object:
            try:
                return self.evaluate(expression)
            except RuntimeError as error:
                if "navigated" in str(error):
                    return None
                raise

        deadline = time.monotonic() + self.patience
        while not (value := value_now()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true within {self.patience} s: {expression}")
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, url: str, theme: str = "light") -> None:
        """Load a page in the light or dark theme; returns once its scripts have run."""
        # the site asks the system for the theme that it shows to a new reader
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.evaluate("window.leaving = true")
        self.call("Page.navigate", url=url)
        self.wait_for("!window.leaving && document.readyState == 'complete'")

    def screenshot(self, path: Path | str, full: bool = True) -> None:
        """Save a picture of the window, or of the whole page."""
        import base64

        options: dict = {"format": "png", "captureBeyondViewport": full}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1
            }  # fmt: skip
        Path(path).write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", **options)["data"])
        )

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = ""
            self.call("Browser.close")
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()


def _said(event: dict) -> list[str]:
    """What an event of the browser says in the console."""
    about = event.get("params", {})
    if event.get("method") == "Runtime.consoleAPICalled":
        parts = [str(part.get("value", part.get("description", ""))) for part in about["args"]]
        return [f"{about['type']}: {' '.join(parts)}"]
    if event.get("method") == "Runtime.exceptionThrown":
        details = about["exceptionDetails"]
        return [f"exception: {details.get('exception', {}).get('description', details['text'])}"]
    if event.get("method") == "Log.entryAdded":
        return [f"{about['entry']['level']}: {about['entry']['text']}"]
    return []
