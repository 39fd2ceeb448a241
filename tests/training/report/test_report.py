"""The page of the training report."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.helpers import small_config, small_shards
from tests.training.logs import event, metrics_row, read_page, report, write_lines
from tests.webpage import EVIL, HOSTILE, check_accessible, check_loads_nothing
from training.config import EvaluationConfig
from training.loop import train
from training.metrics import read_metrics
from training.model.distributed import single
from training.report import write_report


def test_a_real_run_is_reported(tmp_path: Path):
    config = small_config(
        monitor_every_steps=1,
        max_steps=3,
        evaluation=EvaluationConfig(every_steps=2, prompts=0, max_rows=2),
    )
    train(config, small_shards(tmp_path / "shards"), tmp_path / "out", single("cpu"))
    page = read_page(write_report(tmp_path / "out"))
    rows = read_metrics(tmp_path / "out")
    for heading, name, key in (
        ("Loss", "loss", "loss"),
        ("Gradient norm", "gradient norm", "gradient_norm"),
        ("Learning rate", "learning rate", "learning_rate"),
        ("Throughput", "tokens/s", "tokens_per_second"),
        ("Largest logit", "largest logit", "largest_logit"),
    ):
        steps, values = page.trace(heading, name)
        assert steps.tolist() == [1, 2, 3]
        np.testing.assert_allclose(values, [row[key] for row in rows], rtol=1e-6)
    assert {trace["name"] for trace in page.traces("Norm of embedding rows")} <= {"old", "new"}
    assert {"attention", "mlp"} <= {
        trace["name"] for trace in page.traces("Update norm / weight norm")
    }
    assert page.trace("Evaluation loss", "all")[0].tolist() == [2, 3]
    assert page.tiles["Steps"] == "3"
    check_accessible(page)


def test_the_page_loads_nothing(tmp_path: Path):
    page = report(tmp_path, [metrics_row(1), metrics_row(2)])
    check_loads_nothing(page)
    assert page.tags.count("script") == 3


def test_a_run_is_named_by_a_folder_that_tells_it_from_others(tmp_path: Path):
    times = ("2026-11-26T13:15:13+00:00", "2026-11-26T14:00:00+00:00")
    starts = [event(n, "started", n, time=time) for n, time in enumerate(times)]
    page = report(tmp_path / "corpus" / "run" / "train", [metrics_row(1)], starts)
    assert "corpus Training report, first event 2026-11-26 13:15:13 UTC" in page.text
    assert "last event 2026-11-26 14:00:00 UTC, started 2 times" in page.text


def test_an_evaluation_of_one_step_has_no_tick_twice(tmp_path: Path):
    write_lines(tmp_path / "evaluations.jsonl", [{"step": 20, "loss": 2.0}])
    page = report(tmp_path, [metrics_row(step) for step in range(1, 21)])
    assert page.trace("Evaluation loss", "all")[0].tolist() == [20]
    assert page.layout("Evaluation loss")["xaxis"]["dtick"] == 1
    assert "dtick" not in page.layout("Loss")["xaxis"]


def test_the_lowest_validation_loss_and_that_of_the_average_are_shown(tmp_path: Path):
    losses = {10: (3.0, 3.5), 20: (2.25, 2.5), 30: (2.75, 2.125)}
    rows = [{"step": step, "loss": a, "ema_loss": b} for step, (a, b) in losses.items()]
    write_lines(tmp_path / "evaluations.jsonl", rows)
    page = report(tmp_path, [metrics_row(step) for step in range(1, 31)])
    assert page.tiles["Lowest validation loss"] == "2.2500"
    assert "at step 20; averaged weights 2.1250" in page.text
    steps, values = page.trace("Evaluation loss", "all, averaged weights")
    assert (steps.tolist(), values.tolist()) == ([10, 20, 30], [3.5, 2.5, 2.125])


def test_headline_figures(tmp_path: Path):
    rows = [metrics_row(1), metrics_row(2, "clip", gradient_norm=70.5), metrics_row(2, "skip")]
    rows += [metrics_row(3, tokens_per_second=90.0, loss=2.5, data_wait_seconds=0.5)]
    assert report(tmp_path, rows, [event(1, "roll_back", 2)]).tiles == {
        "Steps": "3",
        "Tokens": "300",
        "Last loss": "2.5000",
        "Lowest validation loss": "–",
        "Largest gradient norm": "70.500",
        "Steps clipped": "1",
        "Steps skipped": "1",
        "Rollbacks": "1",
        "Throughput": "50",
        "MFU": "–",
        "Waiting for data": "10.00%",
    }


def test_no_text_of_the_run_becomes_markup(tmp_path: Path):
    folder = tmp_path / "<u>run"
    documents = [{"row": 0, "id": EVIL, "source": EVIL, "loss": 4.0}]
    rows = [metrics_row(1, loss_by_source={EVIL: 3.0}), metrics_row(2, loss_by_source={EVIL: 2.0})]
    found = {"samples": [{"prompt": {"name": EVIL}, "wav": "../../metrics.jsonl"}], "codec": EVIL}
    path = folder / "samples" / "step-00000002" / "samples.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))
    page = report(folder, rows, [event(1, "skip", 2, reason=EVIL, documents=documents)])
    assert not {"img", "u", "audio"} & set(page.tags)
    assert page.tags.count("script") == 3
    assert sum(EVIL in text for text in page.texts) >= 4
    shown = json.dumps([*page.traces("Loss by source"), *page.traces("Loss")])
    assert "<img" not in shown  # plotly takes a text for markup
    assert "&lt;img" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(tmp_path: Path, text: str):
    rows = [metrics_row(1, loss_by_source={text: 3.0})]
    documents = [{"row": 0, "id": text, "source": text, "loss": 4.0}]
    page = report(tmp_path, rows, [event(1, text, 1, reason=text, documents=documents)])
    assert page.tags.count("script") == 3
    assert not any("onmouseover" in element.named for element in page.elements)
    kinds = {e.named["data-kind"] for e in page.elements if "data-kind" in e.named}
    assert kinds == {text}
    assert sum(text.strip() in shown for shown in page.texts) >= 3


def test_half_a_surrogate_pair_in_a_log_is_replaced(tmp_path: Path):
    page = report(tmp_path, [metrics_row(1)], [event(1, "skip", 1, reason="\ud83d gone")])
    assert "? gone" in page.text


def test_the_newest_speech_can_be_heard(tmp_path: Path):
    for step, sound in ((1, b"old"), (2, b"new")):
        folder = tmp_path / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "00.wav").write_bytes(sound)
        sample = {"prompt": {"name": "こんにちは"}, "wav": "00.wav"}
        text = json.dumps({"codec": "UNTRAINED", "samples": [sample]})
        (folder / "samples.json").write_text(text, encoding="utf-8")
    page = report(tmp_path, [metrics_row(1)])
    assert [a for a in page.addresses if a[0] != "#"] == [
        f"data:audio/wav;base64,{base64.b64encode(b'new').decode()}"
    ]
    assert any("こんにちは" in text for text in page.texts)
    assert any("UNTRAINED" in text for text in page.texts)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "evaluations.jsonl"])
def test_a_chart_without_data_says_so(tmp_path: Path, name: str):
    write_lines(tmp_path / name, [{"step": 1, "data_step": 1, "event": "started", "loss": 2.0}])
    page = read_page(write_report(tmp_path))
    missing = sum("There is no data" in text for text in page.texts)
    assert missing == {"metrics.jsonl": 11, "events.jsonl": 12, "evaluations.jsonl": 11}[name]


def test_what_listened_is_drawn_and_stands_beside_the_players(tmp_path: Path):
    measured = [
        {"ovrl": 1.5, "sig": 2.0, "bak": None, "character_error_rate": 1.25},
        {"ovrl": 2.5, "sig": 3.0, "bak": None, "character_error_rate": 0.5},
    ]
    write_lines(
        tmp_path / "evaluations.jsonl",
        [{"step": 10 * n, "loss": 2.0, "samples": s} for n, s in enumerate(measured, 1)],
    )
    folder = tmp_path / "samples" / "step-00000020"
    folder.mkdir(parents=True)
    heard = {
        "text": "やあ",
        "heard": "<b>やま",
        "character_error_rate": 0.5,
        "ovrl": 2.5,
        "sig": None,
    }
    silent = {"text": "ねえ", "heard": "", "character_error_rate": 1.0, "ovrl": None}
    samples = [{"prompt": {"name": name}, "wav": None, **of} for name, of in (("a", heard), ("b", silent), ("c", {}))]  # fmt: skip
    (folder / "samples.json").write_text(json.dumps({"codec": "snac", "samples": samples}))
    page = report(tmp_path, [metrics_row(step) for step in range(1, 21)])
    title = "How generated speech sounds"
    assert page.trace(title, "ovrl")[1].tolist() == [1.5, 2.5]
    assert {trace["name"] for trace in page.traces(title)} == {"ovrl", "sig"}
    rate = page.trace("What is heard of the prompts", "character error rate")
    assert (rate[0].tolist(), rate[1].tolist()) == ([10, 20], [125.0, 50.0])
    assert "ovrl 2.50" in page.text
    assert "character error rate 50%" in page.text
    assert "heard: <b>やま" in page.text
    assert "character error rate 100%" in page.text
    assert "heard: nothing" in page.text
    assert page.text.count("heard:") == 2


def test_without_a_listener_nothing_is_said_of_it(tmp_path: Path):
    write_lines(
        tmp_path / "evaluations.jsonl", [{"step": 1, "loss": 2.0, "samples": {"prompts": 1}}]
    )
    page = report(tmp_path, [metrics_row(1)])
    assert "How generated speech sounds" not in page.text
    assert "What is heard of the prompts" not in page.text
