"""How the training report reads its logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from koe.errors import ConfigError
from tests.training.logs import event, metrics_row, write_lines
from training.report import write_report
from training.report.data import Curve, follow, hardest, medians, read_table, thin


def test_thinning_keeps_each_buckets_extremes_and_invents_nothing():
    rng = np.random.default_rng(1)
    curve = Curve(np.arange(10_007) * 3, rng.normal(size=10_007))
    thinned = thin(curve, 100)
    assert len(thinned) <= 400
    known = dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
    assert all(known[s] == v for s, v in zip(thinned.steps.tolist(), thinned.values, strict=True))
    assert (np.diff(thinned.steps) > 0).all()
    assert {thinned.steps[0], thinned.steps[-1]} == {0, 3 * 10_006}
    for values in np.array_split(curve.values, 100):
        assert {values.min(), values.max()} <= set(thinned.values)


def test_medians_are_not_moved_by_a_spike():
    values = np.ones(1000)
    values[500] = 1e6
    line = medians(Curve(np.arange(1000), values), 50)
    assert len(line) == 50
    assert (line.values == 1).all()


def test_a_rollback_that_no_step_has_followed_yet_is_known_from_its_event(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [metrics_row(step) for step in range(1, 11)])
    rolled_back = {"event": "rolled_back", "step": 4, "data_step": 210}
    main, abandoned, _ = follow(read_table(tmp_path / "metrics.jsonl", pytest.fail), [rolled_back])
    assert main.tolist() == [0, 1, 2, 3]
    assert [piece.tolist() for piece in abandoned] == [[4, 5, 6, 7, 8, 9]]


def test_of_too_many_events_the_hardest_stay():
    events = [event(i, "clip", i) for i in range(900)]
    events[450] = event(450, "stop", 450)
    events[700] = event(700, "skip", 700)
    shown = hardest(events, 3)
    assert [found["event"] for found in shown] == ["clip", "stop", "skip"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"holds no training run.*Name the folder"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="holds no training run"):
        write_report(tmp_path / "nowhere")
