"""The data report in a real browser, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config_file import load_config
from pipeline.job import run_job
from pipeline.ledger import Ledger
from pipeline.plan import load_plan
from pipeline.report import write_data_report
from pipeline.selection import select_stages
from pipeline.stats import full_stats
from pipeline.storage import Storage
from tests.corpus import write_corpus

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is on PATH"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--autoplay-policy=no-user-gesture-required --remote-debugging-pipe"
)
QUIET = Console(stderr=True, quiet=True)
# What a page may do to the tree of the test: nothing but this leaves a mark.
EVIL = "</script><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


class Browser:
    """A page in headless Chromium. Messages are JSON, each ended by a zero byte."""

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
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = ""

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

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a small run, one of whose texts and file names are markup."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_corpus(folder)
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").replace("文章その2", json.dumps(EVIL)[1:-1])
    gone = json.dumps({"audio_filepath": f"{EVIL.replace('/', '')}.wav", "text": "x"})
    manifest.write_text(f"{lines}{gone}\n", encoding="utf-8")
    config = load_config(path)
    run_job(config, select_stages(None, "interleave", None, ()), QUIET)
    storage = Storage(config.run_dir)
    plan, ledger = load_plan(storage), Ledger(storage)
    assert plan is not None
    return write_data_report(config, plan, ledger, full_stats(plan, ledger), folder / "report")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (800, "dark")])
def test_every_chart_is_drawn_and_nothing_complains(
    report: Path, browser: Browser, width: int, theme: str
):
    browser.open(report, width, theme)
    browser.wait("document.querySelectorAll('.plot .main-svg').length > 0")
    charts = browser.value("document.querySelectorAll('.plot').length")
    assert charts >= 14
    drawn = "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.trace')).length"
    assert browser.value(drawn) == charts
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []


def test_no_text_of_the_corpus_runs(report: Path, browser: Browser):
    browser.open(report)
    browser.wait("document.querySelectorAll('.browser tbody tr').length > 0")
    assert browser.value("document.title") != "run"
    assert browser.value("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert browser.value("document.body.textContent.includes('onerror=')")
    assert browser.problems == []


def test_a_clip_plays_and_only_one_at_a_time(report: Path, browser: Browser):
    browser.open(report)
    assert browser.value("document.querySelectorAll('audio').length") >= 4
    browser.wait("[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    assert browser.value("[...document.querySelectorAll('audio')].every(a => a.duration > 0.3)")
    browser.value(
        "longest = [...document.querySelectorAll('audio')].sort((a, b) => b.duration - a.duration); longest[0].muted = true; longest[0].play(); 0"
    )
    browser.wait("longest[0].currentTime > 0.2")
    browser.value("longest[1].muted = true; longest[1].play(); 0")
    browser.wait("longest[0].paused && longest[1].currentTime > 0.1")
    # a click into the middle of a spectrogram goes to the middle of the sound
    browser.value(
        "longest[1].pause(); picture = longest[0].previousElementSibling; "
        "picture.scrollIntoView(); box = picture.getBoundingClientRect(); "
        "picture.dispatchEvent(new MouseEvent('click', {clientX: box.left + box.width / 2})); 0"
    )
    browser.wait("longest[0].currentTime > 0.45 * longest[0].duration")
    assert browser.value("longest[0].previousElementSibling.querySelector('i').style.opacity > 0")
    assert browser.problems == []


def test_filters_narrow_what_was_left_out(report: Path, browser: Browser):
    browser.open(report)
    rows = "[...document.querySelectorAll('.browser tbody tr')].map(r => r.innerText)"
    browser.wait(f"{rows}.length > 4")
    everything = browser.value(rows)
    choose = (
        "(f => {{ f.value = {value}; f.dispatchEvent(new Event({event})) }})"
        "(document.querySelector({selector}))"
    )

    def pick(selector: str, value: str, event: str = "change") -> list[str]:
        words = {"selector": selector, "value": value, "event": event}
        browser.value(choose.format(**{key: json.dumps(word) for key, word in words.items()}))
        return browser.value(rows)

    quarantined = pick("select[data-column=outcome]", "quarantined")
    assert 0 < len(quarantined) < len(everything)
    assert all("quarantined" in row for row in quarantined)
    broken = pick("select[data-column=reason]", "broken_json")
    assert len(broken) == 1
    browser.value("document.getElementById('clear').click()")
    assert browser.value(rows) == everything
    of_text = pick("select[data-column=source]", "text")
    assert len(of_text) == 1
    browser.value("document.getElementById('clear').click()")
    assert 0 < len(pick("input[type=search]", "ZEROS.wav", "input")) < len(everything)
    assert pick("input[type=search]", "no such words", "input") == []
    assert browser.problems == []


def test_histograms_change_with_the_source(report: Path, browser: Browser):
    browser.open(report)
    shown = "[...document.querySelectorAll('.summary')].map(p => p.textContent)"
    browser.wait(f"{shown}.every(Boolean)")
    before = browser.value(shown)
    browser.value(
        "s = document.querySelector('select.source'); s.value = 'text'; "
        "s.dispatchEvent(new Event('change'))"
    )
    after = browser.value(shown)
    assert before != after
    assert "no values of this source" in after
    assert browser.problems == []
