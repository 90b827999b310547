"""A headless Chromium, driven through its own protocol over a pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    # what the page asks of other hosts fails at once
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def find() -> str | None:
    """The Chromium to test with: CHROMIUM, else one on the PATH."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a Chromium with a profile of its own in `folder`."""

    def __init__(self, program: str, folder: Path, width: int, height: int):
        # Chromium reads descriptor 3 and writes descriptor 4; ours are put out of their way, then bash moves them there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
        theirs_in, self._out, self._in, theirs_out = ends
        moved = 'exec "${@:3}" 3<&"$1" 4>&"$2"'
        options = *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", "about:blank"
        self._log = folder / "chromium.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", moved, "bash", str(theirs_in), str(theirs_out), program, *options],
                pass_fds=(theirs_in, theirs_out),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self._session = 0, b"", None
        self.errors: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Page.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"Chromium does not answer:\n{self._log.read_text(errors='replace')[-2000:]}")
            if not (piece := os.read(self._in, 1 << 20)):
                raise AssertionError(f"Chromium ended:\n{self._log.read_text(errors='replace')[-2000:]}")
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; exceptions in the page that come meanwhile go to `errors`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._read(end)
            if answer.get("method") == "Runtime.exceptionThrown":
                detail = answer["params"]["exceptionDetails"]
                self.errors.append(detail.get("exception", {}).get("description") or detail["text"])
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; waits for a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            detail = found["exceptionDetails"]
            raise AssertionError(f"{expression}: {detail.get('exception', {}).get('description') or detail['text']}")
        return found["result"].get("value")

    def wait(self, expression: str, timeout: float = 60) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + timeout
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise AssertionError(f"not true after {timeout:.0f} s: {expression}\n{self.errors}")
            time.sleep(0.25)
        return value

    def click(self, element: str, timeout: float = 60) -> None:
        """Press the mouse in the middle of what a JavaScript expression gives, as soon as nothing lies over it."""
        place = self.wait(
            f"""(() => {{
                const element = {element};
                if (!element) return null;
                element.scrollIntoView({{block: "center"}});
                const box = element.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
                const top = document.elementFromPoint(x, y);
                return top && (element.contains(top) || top.contains(element)) ? [x, y] : null;
            }})()""",
            timeout,
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def click_until(self, element: str, expression: str, times: int = 6, timeout: float = 15) -> None:
        """Click again until an expression is true: what is still loading may push the element from under the mouse."""
        for _ in range(times - 1):
            self.click(element)
            with suppress(AssertionError):
                self.wait(expression, timeout)
                return
        self.click(element)
        self.wait(expression, timeout)

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
