"""What `koe plan` prints: units, costs, and below each table what must be said about it."""

from __future__ import annotations

import io

from rich.console import Console

from koe.schema import SPEECH, TEXT, Unit
from pipeline.estimate import StageEstimate
from pipeline.run_dir.plan import Plan
from pipeline.terminal.plan import estimate_view, plan_rows, plan_view

FAULT = "about 30 records, 2,123,008 bytes not readable"
LONG_PATH = "/data/" + "corpus/" * 8 + "speech-002.tar"
PLAN = Plan(
    (
        Unit("t", "lines", TEXT, "a.jsonl", "1:1", 0, 9, 500),
        Unit("c0", "clips", SPEECH, "a.tar", "1:1", 0, 9, 32),
        Unit("c1", "clips", SPEECH, LONG_PATH, "1:1", 0, 9, 7, 2, 2_123_008, 30),
    ),
    {"lines": TEXT, "clips": SPEECH},
)
ESTIMATES = [
    StageEstimate("score", 20, 7.8, {"windows": 40.0}, 305, {"windows": 530.0}, 0.02, 0.02, 0, 2e5, 0.04),
    StageEstimate("interleave", 9, 0.01, {"tokens": 9.0}, 2277, {"rows": 191.0, "tokens": 386e3}, 1e-6, 1e-6, 0,
                  1.9e6, note="the ratio leaves out 4% of the speech samples"),
    StageEstimate("train", 0, 0, {}, 320, {"tokens": 81900.0}, None, None, None, 0, note="20 steps are 0.22 epochs"),
]  # fmt: skip


def printed(*views: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(*views)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plan_is_summed_up_by_source():
    assert plan_rows(PLAN) == [
        {"source": "lines", "modality": TEXT, "units": 1, "records": 500, "files": 1, "faults": [],
         "lost_records": 0, "lost_bytes": 0},
        {
            "source": "clips", "modality": SPEECH, "units": 2, "records": 39, "files": 2,
            "faults": [f"{LONG_PATH}: {FAULT}"], "lost_records": 30, "lost_bytes": 2_123_008,
        },
    ]  # fmt: skip


def test_a_place_where_a_file_breaks_off_is_shown_whole_below_the_plan():
    shown = printed(plan_view(PLAN))
    table, _, below = shown.partition("fault: ")
    assert "clips (speech)" in table
    assert f"{LONG_PATH}: {FAULT}".replace(" ", "") == "".join(below.split())
    assert not set(shown) & set("┃│┏━─")


def test_an_estimate_says_what_was_sampled_and_what_it_adds_up_to():
    shown = printed(estimate_view(ESTIMATES))
    assert max(map(len, shown.splitlines())) <= 80
    rows = {line.split()[0]: line.split() for line in shown.splitlines()[2:5]}
    assert rows["score"][1:] == [
        "530",
        "windows",
        "5.1/s",
        "1.2",
        "min",
        "±",
        "4%",
        "0",
        "s",
        "200.0",
        "kB",
    ]
    assert rows["train"][1:] == ["81.9k", "tokens"]
    text = " ".join(shown.split())
    assert "sampled by one worker: score 20 of 305 in 7.8 s, interleave 9 of 2,277 in" in text
    assert "Up to the shards 1.2 min of a CPU, 0 s of a GPU and 2.1 MB." in text


def test_each_note_is_a_line_of_its_stage():
    lines = printed(estimate_view(ESTIMATES), width=120).splitlines()
    assert lines[-2:] == [
        "Interleave: the ratio leaves out 4% of the speech samples.",
        "Train: 20 steps are 0.22 epochs.",
    ]
