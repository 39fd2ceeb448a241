"""A page in a real browser, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is on PATH"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--autoplay-policy=no-user-gesture-required --remote-debugging-pipe"
)

# What is written on what, in every element with text of its own that is seen: the lowest contrasts.
# Charts and spectrograms are pictures; their colours are checked where they are defined.
CONTRASTS = """(() => {
  const numbers = (colour) => {
    const found = colour.match(/[\\d.]+/g).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const light = (colour) => numbers(colour).slice(0, 3).reduce((sum, value, place) => {
    const part = value / 255;
    const linear = part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    return sum + linear * [0.2126, 0.7152, 0.0722][place];
  }, 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || element.closest(".plot, .sound, script") || !element.checkVisibility()) continue;
    const pair = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => a - b);
    found.push([(pair[1] + 0.05) / (pair[0] + 0.05), element.className || element.tagName]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()"""


class Browser:
    """Headless Chromium, one page at a time. Messages are JSON, each ended by a zero byte."""

    _session = ""  # of the page; without one, the browser itself is meant

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # the browser reads file descriptor 3 and writes 4
        shell = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "-", BROWSER, *FLAGS.split(), f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._numbers, self._buffer = itertools.count(1), b""
        self.problems: list[str] = []  # errors of the console, exceptions, and what was loaded

    @contextmanager
    def new_page(self) -> Iterator[None]:
        """Show an empty page that knows nothing of those before it."""
        self.problems.clear()
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        target_id = target["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target_id, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.bringToFront")  # or keys would go to another page
        yield
        self._session = ""
        self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if message.get("sessionId") == self._session:  # not a page that was closed
            self._watch(message.get("method", ""), message.get("params", {}))
        return message

    def _watch(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.problems.append(json.dumps(params["entry"]))
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:")):
                self.problems.append(f"loads {address}")

    def open(self, path: Path, width: int = 1400, theme: str = "light") -> None:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")
        self.wait(
            "[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"
        )

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key that the page's focus gets."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        event = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def wait(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.05)

    def close(self) -> None:
        os.close(self._out)  # it ends when its pipe does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a browser once for all tests: each start takes a second."""
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Show an empty page, which is closed after the test."""
    with chromium.new_page():
        yield chromium


def check_looks(browser: Browser, path: Path, width: int, theme: str) -> None:
    """Open a page in a window and assert that it is complete, legible and as wide as the window."""
    browser.open(path, width, theme)
    drawn = "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.trace')).length"
    charts = browser.value("document.querySelectorAll('.plot').length")
    assert browser.value(drawn) == charts > 0
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    ((contrast, where), *_) = browser.value(CONTRASTS)
    assert contrast >= 4.5, where
    page = browser.value("getComputedStyle(document.body).backgroundColor")
    ink = browser.value("getComputedStyle(document.querySelector('.plot .xtitle')).fill")
    dark, bright = sorted((page, ink), key=_brightness)
    assert (dark == page) == (theme == "dark")
    assert _brightness(bright) - _brightness(dark) > 400
    assert browser.problems == []


def check_keyboard(browser: Browser, path: Path, times: int) -> set[str]:
    """Go through a page by Tab and assert that its place is always seen; return what was reached."""
    browser.open(path)
    reached = set()
    for _ in range(times):
        browser.press("Tab")
        tag, style, width = browser.value(
            "(e => [e.tagName, getComputedStyle(e).outlineStyle, "
            "parseFloat(getComputedStyle(e).outlineWidth)])(document.activeElement)"
        )
        reached.add(tag)
        if tag not in ("BODY", "AUDIO"):  # the end of the page; the browser's own controls
            assert style != "none", tag
            assert width >= 2, tag
    unnamed = "[...document.querySelectorAll('button')].filter(b => !b.innerText.trim()).length"
    assert browser.value(unnamed) == 0
    return reached


def _brightness(colour: str) -> int:
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
