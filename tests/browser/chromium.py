"""A headless Chromium, driven through the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._count = 0
        self.complaints: list[str] = []
        """Errors raised by the page's scripts, and violations of its content security policy."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; returns its result."""
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=120))
            self._note(message)
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.complaints.append(parameters["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s: {expression}; complaints: {self.complaints}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a file input, like a user."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def click(self, selector: str) -> None:
        """A real mouse click at the middle of an element."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, name: str) -> None:
        """Press the button with this text."""
        found = f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(name)})"
        self.evaluate(f"{found}.click()")

    def choose(self, selector: str, option: str) -> None:
        """Choose an option of a select by its text."""
        self.evaluate(
            f"(() => {{ const s = document.querySelector({json.dumps(selector)});"
            f"s.value = [...s.options].find(o => o.text === {json.dumps(option)}).value;"
            "s.dispatchEvent(new Event('change')); })()"
        )

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        """Press a mouse button at a point of the window, move, and release it; a click if it is one point."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
        how = {"button": button, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **how)
        if end != start:
            for share in (0.25, 0.5, 0.75, 1.0):
                x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
                buttons = {"left": 1, "right": 2}[button]
                self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=buttons, **how)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **how)

    def key(self, letter: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, code=f"Key{letter.upper()}", key=letter)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window, as on another device."""
        how = {"deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **how)

    def screenshot(self) -> bytes:
        """The visible content, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def opened(address: str, folder: Path, size: tuple[int, int] = (1400, 900)) -> Iterator[Page]:
    """A page at an address. ``folder`` is Chromium's own, and gets its downloads."""
    assert EXECUTABLE is not None
    command = [
        EXECUTABLE,
        "--headless=new",
        "--no-sandbox",  # in a container there is no user namespace for it
        "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-extensions",
        *SOFTWARE_GL,
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_page_address(folder / "profile", process), max_size=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log", "DOM"):
                page.call(f"{domain}.enable")
            page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "downloads"))
            page.call("Page.navigate", url=address)
            page.wait_for("document.readyState === 'complete'")
            yield page
    finally:
        process.kill()
        process.wait()


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Chromium writes the port that it chose to a file."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        file = profile / "DevToolsActivePort"
        if file.is_file() and file.read_text().strip():
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.2)
    raise AssertionError(f"Chromium did not start (exit code {process.poll()})")
