"""Drive headless Chromium by the DevTools protocol, for tests of pages."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import aiohttp
import pytest

ANSWER_S = 60
"""Seconds after which a test gives up."""


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, profile: Path) -> None:
        """Start Chromium; skip the test where there is none.

        Args:
            profile: A new folder for its profile.
        """
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if not program:
            pytest.skip("no Chromium here")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--mute-audio"]
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.loop = asyncio.new_event_loop()
        self.numbers = itertools.count(1)
        self.problems: list[str] = []
        try:
            self.loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))
        except BaseException:
            self.close()
            raise
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End Chromium and all its processes."""
        if hasattr(self, "session"):
            self.loop.run_until_complete(self.session.close())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.loop.close()

    async def _connect(self, file: Path) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not file.exists() or len(file.read_text().splitlines()) < 2:
            assert self.process.poll() is None and time.monotonic() < deadline
            await asyncio.sleep(0.05)
        port = file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
            page = next(t for t in json.load(reply) if t["type"] == "page")
        self.session = aiohttp.ClientSession()
        self.socket = await self.session.ws_connect(
            page["webSocketDebuggerUrl"], max_msg_size=2**28
        )

    def send(self, method: str, **params) -> dict:
        """Send a command and return its result."""
        return self.loop.run_until_complete(asyncio.wait_for(self._send(method, params), ANSWER_S))

    async def _send(self, method: str, params: dict) -> dict:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while True:
            found = await self.socket.receive_json()
            if found.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(found["params"]["exceptionDetails"])[:500])
            if found.get("method") == "Log.entryAdded":
                self.problems.append(found["params"]["entry"]["text"])
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def open(self, address: str, width: int = 1280, *, dark: bool = False) -> None:
        """Open a page at a width in pixels, light or dark."""
        self.resize(width, dark=dark)
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, *, dark: bool = False) -> None:
        """Set the width of the page in pixels, and the system's colours."""
        sides = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", **sides, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, script: str):
        """Return the value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str):
        """Wait until an expression is true in the page, and return its value."""
        deadline = time.monotonic() + ANSWER_S
        while not (value := self.ask(script)):
            assert time.monotonic() < deadline, f"{script} did not come true"
            time.sleep(0.05)
        return value

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in an input of the page, as a person does."""
        node = self.send("DOM.getDocument")["root"]["nodeId"]
        found = self.send("DOM.querySelector", nodeId=node, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=found, files=[str(f) for f in files])

    def type(self, selector: str, text: str) -> None:
        """Type a text into an empty input, key by key, and press Enter."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.send("Input.dispatchKeyEvent", type=kind, **key)

    def set(self, selector: str, value: str) -> None:
        """Set the value of an input or select, with the events that a person's hand causes."""
        self.ask(
            f"(one => {{ one.value = {json.dumps(value)}; for (const kind of ['input', 'change']) "
            "one.dispatchEvent(new Event(kind, { bubbles: true })) })"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
