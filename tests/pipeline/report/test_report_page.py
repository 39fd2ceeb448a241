"""The page of the data report, from statistics written by hand."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from importlib.resources import files

import pytest

from koe.webpage.charts import AMBER, BLUE, GREEN, GREY, ORANGE, RED, SLOT_COLOURS
from pipeline.report.clips import Reconstruction, ShownClip, Sound
from pipeline.report.page import page
from pipeline.stats.model import RunStats
from pipeline.trace.outcomes import ClipOutcome
from tests.reports import content, empty_stats, excluded, left_out, written_stats
from tests.webpage import EVIL, HOSTILE, Page, check_accessible
from training.report.drawing import COLOURS, DARK_RED, VIOLET


@pytest.mark.slow
def test_every_part_of_the_statistics_may_be_empty():
    stats, empty = written_stats(), empty_stats()
    assert len(Page(page(content(stats))).figures) == 16
    for part in fields(RunStats):
        without = replace(stats, **{part.name: getattr(empty, part.name)})
        check_accessible(Page(page(content(without))))
    assert not Page(page(content(empty))).figures


def test_no_text_becomes_markup():
    rows = excluded(1, EVIL, source=EVIL, detail=EVIL, location=EVIL)
    found = Page(
        page(
            content(
                written_stats(EVIL), left_out(rows), name=EVIL, codec=Reconstruction(None, EVIL)
            )
        )
    )
    assert "img" not in found.tags
    assert found.tags.count("script") == 4
    assert found.data["left-out"]["records"] == [
        [f"{EVIL}0", EVIL, "encode", "rejected", EVIL, EVIL, EVIL]
    ]
    for (
        figure
    ) in found.figures.values():  # plotly takes a text for markup, but not what only marks a trace
        for trace in figure["data"]:
            trace.pop("meta", None)
        assert "<img" not in json.dumps(figure)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text: str):
    rows = excluded(1, text, source=text, detail=text, location=text)
    row = {
        "id": text,
        "text": text,
        "seconds": 2.0,
        "audio_hz": 16_000,
        "source": text,
        "ovrl": 2.0,
    }
    clip = ShownClip("worst", row, ClipOutcome("rejected", text), Sound(text), Sound(text))
    made = content(
        written_stats(text),
        left_out(rows),
        name=text,
        codec=Reconstruction(None, text),
        clips=[clip],
    )
    found = Page(page(made))
    assert found.tags.count("script") == 4
    assert not {"b", "img"} & {e.tag for e in found.elements if "onmouseover" in e.named}
    assert found.data["left-out"]["records"][0][4:] == [text] * 3
    shown = [shown.strip() for shown in found.texts]
    assert shown.count(text.strip()) >= 10  # heading, source, clip, its reason, duplicates, shard
    titles = [e.named["title"] for e in found.elements if e.named.get("title")]
    assert titles == [text]
    check_accessible(found)


def test_excluded_records_are_balanced_over_their_reasons_and_all_are_counted():
    found = left_out(
        excluded(80), excluded(3, "rare"), excluded(60), excluded(50, "other"), limit=43
    )
    reasons = [row["reason"] for row in found.shown()]
    assert {reason: reasons.count(reason) for reason in set(reasons)} == {
        "below_threshold": 20, "other": 20, "rare": 3,
    }  # fmt: skip
    assert found.counts.total() == 193
    assert found.losses({"clips"})[0] == ("encode", "rejected", "below_threshold", 140)
    assert found.losses({"elsewhere"}) == []
    shown = Page(page(content(written_stats(), found)))
    assert "43 of 193 records are listed here" in shown.text
    assert "below threshold (140)" in shown.text


def test_headline_figures():
    assert Page(page(content(written_stats()))).tiles == {
        "Clips in": "10",
        "Clips kept": "6",
        "Samples kept": "6",
        "Left out": "8",
        "Tokens out": "100",
        "Row fill": "98.00%",
    }


def test_record_counts_that_do_not_add_up_are_said():
    stats = written_stats()
    assert "record counts add up" in Page(page(content(stats))).text
    stats.samples.kept += 1
    assert "record counts do not add up" in Page(page(content(stats))).text


def test_a_chart_is_put_into_words():
    found = Page(page(content(written_stats())))
    labels = [e.named["aria-label"] for e in found.elements if e.named.get("class") == "plot"]
    assert labels[0] == "Clips. clips in: 10; kept: 6"
    words = "share of the tokens, % over progress through the training rows, %. speech: 90 to 90. "
    assert f"Mix over progress. {words}text: 10 to 10." in labels


def test_colours_can_be_told_from_what_lies_behind_them():
    """WCAG 2 AA: text 4.5 : 1, graphics and edges of controls 3 : 1."""
    style = (files("koe.webpage") / "templates/page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([a-z]+): (#\w+);", part)) for part in style.split("@media")[:2]]
    assert len(schemes[0]) == len(schemes[1]) > 10
    texts = ("ink", "soft", "accent", "kept", "rejected", "quarantined", "lowered")
    charts = {AMBER, BLUE, GREEN, GREY, ORANGE, RED, DARK_RED, VIOLET, *SLOT_COLOURS, *COLOURS}
    for of in schemes:
        for behind in (of["page"], of["card"]):
            assert min(_contrast(of[text], behind) for text in texts) >= 4.5
            assert _contrast(of["edge"], behind) >= 3
        assert min(_contrast(colour, of["card"]) for colour in charts) >= 3
        assert _contrast(of["ink"], of["bar"]) >= 4.5
        assert _contrast(of["page"], of["accent"]) >= 4.5  # of the button that is pressed


def _contrast(one: str, other: str) -> float:
    dark, bright = sorted(_luminance(colour) for colour in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
