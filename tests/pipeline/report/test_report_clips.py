"""Which clips one can listen to in the report, and what it says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.report.clips import ShownClip, Sound
from pipeline.report.page import page as render_page
from pipeline.report.survey import BEST, BORDERLINE, FASTEST, LONGEST, SLOWEST, WORST, Extremes
from pipeline.run_dir.reading import read_index
from pipeline.trace.outcomes import ClipOutcome, ClipOutcomes
from tests.corpus import write_corpus
from tests.reports import content, empty_stats, opened, report, run_to
from tests.webpage import Page

# leaves out the clips that have not two rows of text each to go with
SPARSE = ("interleave.ratio=[[0.0,{text: 2, speech: 1}]]", "interleave.max_row_tokens=512")


def add(extremes: Extremes, unit: str, ovrl: np.ndarray, seconds: float) -> None:
    """Add clips that differ in nothing but their score; of no known length none is an outlier."""
    extremes.add(unit, ovrl, np.full(len(ovrl), 10.0), np.full(len(ovrl), seconds))


def test_extremes_are_those_of_all_units_and_no_clip_is_shown_twice():
    scores = np.random.default_rng(0).uniform(1, 5, (10, 100))
    extremes = Extremes(2.5, 4)
    for number, unit in enumerate(scores):
        add(extremes, f"u{number}", unit, np.nan)
    picked = extremes.pick()
    ordered = np.sort(scores.ravel())
    assert [place.ovrl for place in picked[BEST]] == ordered[::-1][:4].tolist()
    assert [place.ovrl for place in picked[WORST]] == ordered[:4][::-1].tolist()
    above, below = ordered[ordered > 2.5][:2], ordered[ordered <= 2.5][-2:]
    assert [p.ovrl for p in picked[BORDERLINE]] == [*above[::-1], *below[::-1]]
    assert all(scores[int(p.unit[1:]), p.row] == p.ovrl for p in picked[BEST])
    shown = [place for places in picked.values() for place in places]
    assert len(set(shown)) == len(shown) == 3 * 4


def test_of_few_clips_each_kind_gets_some():
    extremes = Extremes(2.5, 6)
    add(extremes, "u", np.array([1.0, 2.0, 2.4, 2.6, 2.9, 3.0, 4.0]), 1.0)
    picked = extremes.pick()
    assert sum(map(len, picked.values())) == 7
    assert {2.4, 2.6} <= {place.ovrl for place in picked[BORDERLINE]}
    assert min(picked[WORST]).ovrl == 1.0
    assert max(picked[BEST]).ovrl == 4.0
    assert all(len(picked[kind]) == 1 for kind in (FASTEST, SLOWEST, LONGEST))


def test_outliers_are_the_fastest_the_slowest_and_the_longest():
    rng = np.random.default_rng(1)
    characters, seconds = rng.integers(5, 50, 200).astype(float), rng.uniform(2, 9, 200)
    characters[[3, 30]], seconds[[3, 30]] = [300, 200], [2.0, 2.0]  # fastest
    characters[[4, 40]], seconds[[4, 40]] = [0, 1], [8.0, 9.5]  # slowest
    seconds[[5, 50]], characters[[5, 50]] = [30.0, 29.0], [300, 290]  # longest
    seconds[6] = 0.0  # of no rate
    extremes = Extremes(2.5, 4)
    ovrl = np.full(200, 3.0) + np.arange(200) / 1000  # no outlier is one of the best or worst
    ovrl[[3, 30, 4, 40, 5, 50, 6]] = 3.1
    for start in range(0, 200, 50):
        part = slice(start, start + 50)
        extremes.add(f"u{start}", ovrl[part], characters[part], seconds[part])
    picked = extremes.pick()
    rows = {kind: [int(p.unit[1:]) + p.row for p in picked[kind]] for kind in picked}
    assert rows[FASTEST] == [3, 30]
    assert rows[SLOWEST] == [4, 40]
    assert rows[LONGEST] == [5, 50]
    assert 6 not in rows[FASTEST] + rows[SLOWEST]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (BORDERLINE, "2.512 ovrl · Borderline"),
        (WORST, "2.512 ovrl · Worst"),
        (FASTEST, "12.50 characters/s · Fastest speech"),
        (SLOWEST, "12.50 characters/s · Slowest speech"),
        (LONGEST, "0.8 s · Longest"),
    ],
)
def test_a_clip_is_headed_by_what_it_was_chosen_for(kind: str, number: str):
    row = {"id": "a/b", "text": "十文字の文章である。", "seconds": 0.8, "audio_hz": 44100}
    row |= {"source": "s", "ovrl": 2.512, "sig": 3.0, "bak": 3.5, "p808": None}
    nothing = Sound("gone")
    shown = ShownClip(
        kind, row, ClipOutcome("rejected", "below_threshold: ovrl 2"), nothing, nothing
    )
    page = Page(render_page(content(empty_stats(), clips=[shown])))
    assert number in page.text
    assert "ovrl 2.512 · sig 3.000 · bak 3.500" in page.text
    assert "0.8 s · 12.5 characters/s · 44.1 kHz · s" in page.text
    assert "No original gone" in page.text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("outcomes"), num_samples=12)


@pytest.mark.slow
def test_what_became_of_a_clip_is_told_at_every_stage_of_a_run(corpus: Path, tmp_path: Path):
    """The run goes on from stage to stage; the page at its end shows the same."""
    told: dict[str, dict[str, ClipOutcome]] = {}
    for stage in ("score", "encode", "tokenize", "interleave"):
        plan, ledger = run_to(corpus, stage, *SPARSE)
        scored = {
            (unit.unit, id): receipt
            for unit in plan.units
            if (receipt := ledger.receipt("score", unit.unit)) is not None
            for id in ledger.read(receipt)["id"].to_pylist()
        }
        outcomes = ClipOutcomes(ledger, scored)
        told[stage] = {id: outcomes.of(receipt.unit, id) for (_, id), receipt in scored.items()}
    assert {outcome.why for outcome in told["score"].values()} == {"waits for encode"}
    noise = next(id for id, outcome in told["encode"].items() if outcome.outcome == "rejected")
    assert told["encode"][noise].why.startswith("below_threshold: ovrl ")
    assert told["encode"][noise].encoded is None
    for stage, why in (("encode", "waits for tokenize"), ("tokenize", "waits for interleave")):
        others = [outcome for id, outcome in told[stage].items() if id != noise]
        assert {(outcome.outcome, outcome.why) for outcome in others} == {("pending", why)}
        assert all(outcome.encoded and outcome.encoded["codes"] for outcome in others)

    placed = _ids_in_shards(corpus)
    kept = {id for id, outcome in told["interleave"].items() if outcome.outcome == "kept"}
    assert kept == placed & set(told["interleave"])
    left_out = [f for id, f in told["interleave"].items() if id not in {*kept, noise}]
    assert left_out
    assert all(f.outcome == "rejected" and f.why.startswith("ratio_exhausted: ") for f in left_out)

    page = report(corpus, tmp_path, *SPARSE)
    assert page.text.count("rejected ratio_exhausted: ") == len(left_out)
    waterfall = page.layout("Clips")["yaxis"]["ticktext"]
    assert "ratio exhausted · interleave" in waterfall
    assert page.tiles["Clips kept"] == str(len(kept))


def _ids_in_shards(corpus: Path) -> set[str]:
    _, ledger = opened(corpus)
    index = read_index(ledger)
    assert index is not None
    rows = [ledger.storage.read_table(f"shards/{shard['path']}") for shard in index["shards"]]
    return {id for table in rows for ids in table["document_ids"].to_pylist() for id in ids}
