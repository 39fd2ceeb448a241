"""Clips whose rate is unusual for their source leave the order, and are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koe.schema import ENCODED, REJECTED
from stages.packing.leaving import Clips, Left
from stages.packing.order import plan_order, unit_samples
from stages.packing.rates import unusual_clips
from stages.packing.reasons import LONG, SHORT
from stages.settings import InterleaveSettings, TranscriptsConfig
from stages.text.transcripts import TranscriptChecks, unusual_rates
from tests.stages.samples import excluded, speech_unit, text_unit
from tests.written_run import filled


def clip(number: int, text: str, seconds: float = 1.0, source: str = "jvs") -> dict[str, Any]:
    return {"id": f"{source}/{number}", "source": source, "text": text, "seconds": seconds}


CLIPS = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from(["", "あ", "いい", "うう", "ええええ", "声" * 30]),
    st.sampled_from([0.0, 1.0, 1.5]),
    st.booleans() | st.just(True),
)


@given(st.lists(st.lists(CLIPS, max_size=30), max_size=6), st.sampled_from([0.5, 1.0, 3.0]))
def test_each_clip_is_judged_by_all_of_its_source(drawn, most):
    """A unit holds clips of one source, so those of each drawn list become two units."""
    rows = [[row for row in unit if row[0] == name] for unit in drawn for name in "ab"]
    flat = [row for unit in rows for row in unit]
    free = np.array([row[3] for row in flat], bool)
    units, begin = [], 0
    for unit in rows:
        table = filled(ENCODED, [clip(0, text, seconds, s) for s, text, seconds, _ in unit])
        units.append(Clips(begin, table.select))
        begin += len(unit)
    settings = TranscriptsConfig(max_rate_deviations=most)
    checks = TranscriptChecks(settings)
    expected = {}
    for name in "ab":
        numbers = [n for n, row in enumerate(flat) if row[0] == name]
        rates = np.array([checks.rate(flat[n][1], flat[n][2]) for n in numbers], np.float32)
        for number, unusual in zip(numbers, unusual_rates(rates, most).tolist(), strict=True):
            if unusual and free[number]:
                expected[number] = LONG if unusual > 0 else SHORT
    left = unusual_clips(units, free, settings)
    assert dict(zip(left.numbers.tolist(), left.codes.tolist(), strict=True)) == expected


def test_nothing_is_read_where_nothing_is_asked_for():
    units = [Clips(0, pytest.fail)]
    assert not len(unusual_clips(units, np.ones(1, bool), TranscriptsConfig()).numbers)


def test_an_order_leaves_them_out_and_says_why():
    rng = np.random.default_rng(0)
    tables = [speech_unit(rng, [3] * 30), speech_unit(rng, [3] * 3, first=30)]
    texts = ["あいうえお", "かきくけ", "さしす"] * 10 + ["長" * 200, "あ", "あいうえお"]
    clips = [clip(number, text) for number, text in enumerate(texts)]
    parts = [filled(ENCODED, clips[:30]).select, filled(ENCODED, clips[30:]).select, None]
    units = [
        unit_samples(index, name, lambda table=table: table, part)
        for index, (name, table, part) in enumerate(
            zip("abt", [*tables, text_unit(rng, [50, 60])], parts, strict=True)
        )
    ]
    checks = TranscriptsConfig(max_rate_deviations=4.0)
    order = plan_order(units, InterleaveSettings(seed=0, transcripts=checks))
    rows = excluded(order, REJECTED).to_pylist()
    usual = "1.06 to 15.02 are usual in its source"
    assert [(row["id"], row["reason"], row["detail"]) for row in rows] == [
        ("jvs/30", "text_long_for_source", f"200.00 characters per second, {usual}"),
        ("jvs/31", "text_short_for_source", f"1.00 characters per second, {usual}"),
    ]
    assert order.reasons(REJECTED) == {"text_long_for_source": 1, "text_short_for_source": 1}
    assert sum(number for _, number in order.placed_by_unit()) == 35 - 2


def test_only_the_check_by_source_is_of_the_order():
    settings = InterleaveSettings(seed=0, transcripts=TranscriptsConfig(max_repeats=8))
    assert settings.content() == InterleaveSettings(seed=0).content()
    assert "transcripts" not in settings.content()
    on = InterleaveSettings(seed=0, transcripts=TranscriptsConfig(max_rate_deviations=3.0))
    assert on.content()["transcripts"]["max_rate_deviations"] == 3.0


def test_two_parts_of_what_leaves_are_one():
    bounds = {"a": (1.0, 2.0)}
    some = Left(np.array([5, 9]), np.array([4, 5], np.uint8), np.array([1.0, 2.0]), bounds)
    more = Left(np.array([2, 7]), np.array([6, 7], np.uint8), np.array([0.0, 3.0]))
    both = some.joined(more)
    assert both.numbers.tolist() == [2, 5, 7, 9]
    assert both.codes.tolist() == [6, 4, 7, 5]
    assert [both.value_of(number) for number in (2, 5, 7, 9)] == [0.0, 1.0, 3.0, 2.0]
    assert both.bounds == bounds
