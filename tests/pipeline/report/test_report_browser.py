"""The data report in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser import Browser, check_keyboard, check_looks, needs_browser
from tests.corpus import write_corpus
from tests.reports import run_to, write_report

pytestmark = [pytest.mark.slow, needs_browser]
# What a page may do to the tree of the test: nothing but this leaves a mark.
EVIL = "</script><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>\u2028\u202e"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a small run, one of whose texts and file names are markup."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_corpus(folder)
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").replace("文章その2", json.dumps(EVIL)[1:-1])
    gone = json.dumps({"audio_filepath": f"{EVIL.replace('/', '')}.wav", "text": "x"})
    manifest.write_text(f"{lines}{gone}\n", encoding="utf-8")
    run_to(path, "interleave")
    return write_report(path, folder / "report")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 800, 1400])
def test_the_page_looks_right(report: Path, browser: Browser, width: int, theme: str):
    check_looks(browser, report, width, theme)


def test_keys_reach_all_controls_and_their_place_is_seen(report: Path, browser: Browser):
    reached = check_keyboard(browser, report, 40)
    assert {"A", "SELECT", "BUTTON", "AUDIO"} <= reached
    # Enter on a button shows the clips of its kind only
    browser.value("document.querySelector('button[data-kind=worst]').focus(); 0")
    browser.press("Enter")
    kinds = "[...document.querySelectorAll('.clips tbody tr')].filter(r => !r.hidden).map(r => r.dataset.kind)"
    assert set(browser.value(kinds)) == {"worst"}
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.kind)"
    assert browser.value(pressed) == ["worst"]


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
    browser.value("document.querySelector('button[data-kind=all]').click()")
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
    assert "This source has no values." in after
    assert browser.problems == []
