"""Curves of the training report, and what befell them: spikes, rollbacks, skips, events."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.training.logs import event, metrics_row, read_page, report
from tests.webpage import numbers
from training.report import write_report


@pytest.mark.slow
def test_one_spike_of_100_000_steps_is_seen_and_the_page_stays_small(tmp_path: Path):
    steps = np.arange(1, 100_001)
    norms = np.random.default_rng(0).uniform(0.5, 1.5, len(steps))
    norms[54_321] = 777.0
    lines = [
        f'{{"step": {step}, "loss": {3 + norm / 100}, "gradient_norm": {norm}}}\n'
        for step, norm in zip(steps.tolist(), norms.tolist(), strict=True)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    path = write_report(tmp_path)
    x, y = read_page(path).trace("Gradient norm", "gradient norm")
    assert len(x) < 2000
    assert x[y.argmax()] == 54_322
    assert y.max() == 777
    assert path.stat().st_size < 10e6


def test_after_a_rollback_the_later_line_wins_and_the_rest_is_faint(tmp_path: Path):
    first = [metrics_row(step, loss=5.0) for step in range(1, 11)]
    again = [metrics_row(step, loss=4.0, data_step=step + 30) for step in range(6, 9)]
    page = report(tmp_path, [*first, metrics_row(10, "skip", loss=9.0), *again])
    steps, losses = page.trace("Loss", "loss")
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]  # 9 and 10 are not of this run any more
    assert losses.tolist() == [5.0] * 5 + [4.0] * 3
    steps, losses = page.trace("Loss", "undone by a rollback")
    assert steps.tolist() == [6, 7, 8, 9, 10]
    assert losses.tolist() == [5.0] * 5
    assert page.trace("Loss", "not applied")[1].tolist() == [9.0]
    assert page.tiles["Steps"] == "8"


def test_a_skipped_step_does_not_replace_the_step_before_it(tmp_path: Path):
    rows = [metrics_row(1, loss=3.0), metrics_row(1, "skip", loss=50.0), metrics_row(2, loss=2.0)]
    steps, losses = report(tmp_path, rows).trace("Loss", "loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2], [3.0, 2.0])


def test_what_is_not_finite_is_marked(tmp_path: Path):
    rows = [metrics_row(1), metrics_row(1, "skip", loss="nan", gradient_norm="inf"), metrics_row(2)]
    page = report(tmp_path, rows)
    for heading, text in (("Loss", "loss is nan"), ("Gradient norm", "gradient norm is inf")):
        (mark,) = (t for t in page.traces(heading) if t["name"] == "not finite")
        assert mark["text"] == [text]
        assert numbers(mark["x"]).tolist() == [1]
        assert np.isfinite(numbers(mark["y"])).all()


def test_a_run_of_nothing_but_nan_is_reported(tmp_path: Path):
    rows = [metrics_row(0, "skip", loss="nan", gradient_norm="nan") for _ in range(3)]
    page = report(tmp_path, rows)
    assert page.tiles["Last loss"] == "–"
    assert page.tiles["Steps skipped"] == "3"
    assert [t["name"] for t in page.traces("Loss")].count("not finite") == 1


def test_events_are_marked_with_their_reason_and_listed_with_their_worst_documents(tmp_path: Path):
    losses = [3.0, "nan", 9.0, None, 5.0]
    documents = [{"row": i, "id": f"d{i}", "source": "s", "loss": x} for i, x in enumerate(losses)]
    events = [
        event(1, "started", 0),
        event(2, "skip", 2, reason="loss 8 is above 4", loss=8.0, documents=documents),
        event(3, "restore_rate", 3),
    ]
    page = report(tmp_path, [metrics_row(step) for step in (1, 2, 3)], events)
    (mark,) = (trace for trace in page.traces("Loss") if trace["name"] == "skip")
    assert mark["text"] == ["<b>E0002 skip, step 2</b><br>loss 8 is above 4"]
    assert numbers(mark["y"]).tolist() == [8.0]
    (mark,) = (trace for trace in page.traces("Loss") if trace["name"] == "restore rate")
    assert numbers(mark["y"]) == pytest.approx([3.003])  # has no loss of its own: that of its step
    texts = [text.strip() for text in page.texts]
    assert [t for t in texts if re.fullmatch(r"d\d", t)] == ["d1", "d2", "d4"]
