"""The training report in a real browser."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.browser import Browser, check_keyboard, check_looks, needs_browser
from tests.training.logs import event, metrics_row, write_lines
from training.report import write_report

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a run that was clipped, skipped, rolled back, measured and heard."""
    folder = tmp_path_factory.mktemp("run")
    changes = {
        "loss_by_source": {"clips": 3.0, "text": 2.5},
        "loss_by_modality": {"speech": 3.0, "text": 2.5},
        "loss_by_slot": [3.0 + slot / 10 for slot in range(7)],
        "rate_factor": 1.0,
        "largest_logit": 9.0,
        "update_ratio": {"embedding_old": 1e-4, "mlp": 2e-3},
        "row_norms": {"old": 1.0, "new": 1.1},
        "limits": {"loss": 4.0, "gradient_norm": 900.0, "clip": 2.0},
    }
    rows = [metrics_row(step, **changes) for step in range(1, 31)]
    rows[9] = metrics_row(10, "clip", gradient_norm=5.0)
    rows.insert(20, metrics_row(20, "skip", loss="nan", gradient_norm="inf"))
    again = [metrics_row(step, data_step=step + 20) for step in range(25, 40)]
    write_lines(folder / "metrics.jsonl", [*rows, *again])
    documents = [{"row": 3, "id": "clips/a-rather-long-id", "source": "clips", "loss": 9.0}]
    kinds = [("started", 0), ("clip", 10), ("skip", 20), ("lower_rate", 20), ("roll_back", 24)]
    events = [
        event(n, kind, step, reason=f"{kind} for a reason", documents=documents)
        for n, (kind, step) in enumerate(kinds)
    ]
    write_lines(folder / "events.jsonl", events)
    measured = {"loss": 3.0, "loss_by_source": {"clips": 3.1}, "samples": {"valid_share": 0.5}}
    write_lines(folder / "evaluations.jsonl", [{"step": step, **measured} for step in (10, 20)])
    spoken = folder / "samples" / "step-00000020"
    spoken.mkdir(parents=True)
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(24_000, np.float32), 24_000, format="WAV")
    (spoken / "00.wav").write_bytes(sound.getvalue())
    found = {"codec": "UNTRAINED", "samples": [{"prompt": {"name": "挨拶"}, "wav": "00.wav"}]}
    (spoken / "samples.json").write_text(json.dumps(found), encoding="utf-8")
    return write_report(folder)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_looks_right(page: Path, browser: Browser, width: int, theme: str):
    check_looks(browser, page, width, theme)


def test_keys_reach_all_controls_and_their_place_is_seen(page: Path, browser: Browser):
    assert {"A", "BUTTON", "INPUT", "DIV", "AUDIO"} <= check_keyboard(browser, page, 40)


def test_charts_share_their_steps_and_change_their_scale(page: Path, browser: Browser):
    browser.open(page)
    plots = "[...document.querySelectorAll('.plot')]"
    dragged = "{'xaxis.range[0]': 5, 'xaxis.range[1]': 12}"
    browser.value(f"Plotly.relayout({plots}[0], {dragged}); 0")
    browser.wait(f"{plots}.every(p => Math.round(p.layout.xaxis.range[1]) === 12)")
    button = "document.querySelectorAll('button.scale')[0]"
    browser.wait(f"{button}.textContent === 'log scale'")
    browser.value(f"{button}.click()")
    browser.wait(f"{button}.textContent === 'linear scale'")
    assert browser.value(f"{plots}[0].layout.yaxis.type") == "log"
    assert browser.value(f"{button}.getAttribute('aria-label')") == "linear scale of Loss"
    assert browser.problems == []


def test_kinds_of_events_are_hidden_and_speech_is_heard(page: Path, browser: Browser):
    browser.open(page)
    shown = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).length"
    assert browser.value(shown) == 5
    browser.value("document.querySelector('input[data-kind=skip]').click()")
    assert browser.value(shown) == 4
    browser.value("sound = document.querySelector('audio'); sound.muted = true; sound.play(); 0")
    browser.wait("sound.currentTime > 0.1")
    assert browser.problems == []
