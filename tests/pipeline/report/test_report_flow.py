"""The waterfalls: from what came in to what was kept, and from modalities to tokens out."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from koe.schema import SPEECH, TEXT
from koe.webpage.charts import Chart
from pipeline.report.flow import MAX_REASONS, Loss, waterfalls
from pipeline.stats.model import Account, ShardStats
from tests.reports import empty_stats

BELOW: Loss = ("encode", "rejected", "below_threshold", 3)
BROKEN: Loss = ("ingest", "quarantined", "broken_json", 1)
EXHAUSTED: Loss = ("interleave", "rejected", "ratio_exhausted", 2)


def bars(chart: Chart) -> dict[str, tuple[float, float, str]]:
    """Map the name of each bar to where it starts, where it ends, and its kind."""
    assert isinstance(chart.figure, go.Figure)
    names = chart.figure.layout.yaxis.ticktext
    found: dict[int, tuple[float, float, str]] = {}
    for trace in chart.figure.data:
        for row, start, length in zip(trace.y, trace.base, trace.x, strict=True):
            found[row] = (start, start + length, trace.name)
    return {names[row]: found[row] for row in sorted(found)}


def account(kept: int, pending: int, losses: list[Loss], modality: str = SPEECH) -> Account:
    records = kept + pending + sum(loss[3] for loss in losses)
    return Account(modality, records_in=records, kept=kept, pending=pending)


def test_each_bar_starts_where_the_one_above_ends():
    losses = [BROKEN, BELOW, EXHAUSTED]
    (chart,) = waterfalls(empty_stats(clips=account(4, 0, losses)), losses, [])
    assert bars(chart) == {
        "clips in": (0, 10, "in"),
        "broken json · ingest": (9, 10, "quarantined"),
        "below threshold · encode": (6, 9, "rejected"),
        "ratio exhausted · interleave": (4, 6, "rejected"),
        "kept": (0, 4, "kept"),
    }
    assert chart.note == "40.0% kept"
    assert chart.words == (
        "clips in: 10; broken json · ingest: −1 (quarantined); below threshold · encode: −3 "
        "(rejected); ratio exhausted · interleave: −2 (rejected); kept: 4"
    )


def test_before_anything_is_scored_what_came_in_is_not_done_yet():
    (chart,) = waterfalls(empty_stats(clips=account(0, 9, [BROKEN])), [BROKEN], [])
    assert bars(chart) == {
        "clips in": (0, 10, "in"),
        "broken json · ingest": (9, 10, "quarantined"),
        "not done yet": (0, 9, "not done yet"),
        "kept": (0, 0, "kept"),
    }
    assert chart.note == "90.0% not done yet"


def test_a_run_that_is_half_done_says_both():
    (chart,) = waterfalls(empty_stats(clips=account(5, 4, [BROKEN])), [BROKEN], [])
    assert chart.note == "50.0% kept, 40.0% not done yet"


def test_only_text_sources_have_no_waterfall_of_clips():
    by_modality = {SPEECH: 0, TEXT: 90}
    stats = empty_stats(
        samples=account(6, 0, [BROKEN], TEXT),
        shards=ShardStats(
            rows=2, tokens=90, row_capacity=50, fill=0.9, tokens_by_modality=by_modality
        ),
    )
    samples, tokens = waterfalls(stats, [], [BROKEN])
    assert (samples.title, next(iter(bars(samples)))) == ("Instruction samples", "samples in")
    assert bars(tokens) == {
        "text tokens": (0, 90, "text"),
        "tokens out": (0, 90, "tokens out"),
        "padding to full rows": (90, 100, "padding"),
    }
    assert not samples.tall


def test_three_waterfalls_stand_in_a_line_unless_the_first_is_high():
    stats = empty_stats(
        clips=account(1, 0, []),
        samples=account(1, 0, [], TEXT),
        shards=ShardStats(rows=1, tokens=3, tokens_by_modality={SPEECH: 1, TEXT: 2}),
    )
    places = [(c.tall, c.span) for c in waterfalls(stats, [], [])]
    assert places == [(False, 2), (False, 2), (False, 2)]
    losses = [("ingest", "rejected", f"reason_{n}", 1) for n in range(8)]
    places = [(c.tall, c.span) for c in waterfalls(stats, losses, [])]
    assert places == [(True, 3), (False, 3), (False, 3)]
    assert waterfalls(empty_stats(), [], []) == []


@pytest.mark.parametrize("number", [MAX_REASONS, MAX_REASONS + 1, MAX_REASONS + 5])
def test_rare_reasons_share_a_bar_by_outcome_and_nothing_is_lost(number: int):
    outcomes = ("rejected", "quarantined")
    losses = [("ingest", outcomes[n % 2], f"reason_{n}", n + 1) for n in range(number)]
    (chart,) = waterfalls(empty_stats(clips=account(7, 0, losses)), losses, [])
    drawn = bars(chart)
    lost = [end - start for start, end, kind in drawn.values() if kind in outcomes]
    assert sum(lost) == sum(loss[3] for loss in losses)
    assert drawn["kept"] == (0, 7, "kept")
    rarer = [name for name in drawn if "rarer" in name]
    assert rarer == (["3 rarer reasons", "2 rarer reasons"] if number == MAX_REASONS + 5 else [])
    if rarer:
        assert [drawn[name][2] for name in rarer] == ["rejected", "quarantined"]
