from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, ContractError
from tests.training.helpers import small_config, small_shards
from training.config import EvaluationConfig
from training.distributed import single
from training.loop import train
from training.metrics import read_metrics
from training.report import write_report
from training.report.data import Curve, follow, hardest, medians, read_run, read_table, thin

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def metrics_row(step: int, action: str = "accept", **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "data_step": step,
        "action": action,
        "loss": 3.0 + step / 1000,
        "gradient_norm": 1.0,
        "learning_rate": 1e-4,
        "tokens": 100,
        "total_tokens": 100 * step,
        "tokens_per_second": 50.0,
        "seconds": 2.0,
        "data_wait_seconds": 0.1,
        "mfu_full": None,
        "mfu_causal": None,
        "limits": {"loss": 30.0, "gradient_norm": 1000.0, "clip": "inf"},
        **changes,
    }


def event(number: int, kind: str, step: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"E{number:04d}", "event": kind, "step": step, "data_step": step, **changes}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Page(HTMLParser):
    """The page as a browser takes it apart: figures by heading, text, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._within, self._data, self._cards = "", "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.figures = json.loads(self._data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self._within = "figures" if named.get("id") == "figures" else tag
        self.addresses += [str(named[key]) for key in ("src", "href") if key in named]
        if named.get("class") == "plot":
            self._cards.append((self._heading, int(named["data-figure"] or 0)))

    def handle_data(self, data: str) -> None:
        if self._within == "figures":
            self._data += data
        elif self._within == "h2":
            self._heading = data
            self._within = ""
        elif self._within not in ("script", "style"):
            self.texts.append(data)

    def traces(self, heading: str) -> list[dict[str, Any]]:
        return self.figures[dict(self._cards)[heading]]["data"]

    def trace(self, heading: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the first trace of that name, the faint one where there are two."""
        found = next(trace for trace in self.traces(heading) if trace["name"] == name)
        return _array(found["x"]), _array(found["y"])

    def tiles(self) -> dict[str, str]:
        words = [text.strip() for text in self.texts if text.strip()]
        names = ("Steps", "Tokens", "Last loss", "Largest gradient norm", "Steps clipped")
        names += ("Steps skipped", "Rollbacks", "Throughput", "Waiting for data")
        return {name: words[words.index(name) + 1] for name in names}


def _array(coded: Any) -> np.ndarray:
    if isinstance(coded, dict):
        return np.frombuffer(base64.b64decode(coded["bdata"]), np.dtype(coded["dtype"]))
    return np.array(coded)


def report(folder: Path, metrics: list[dict], events: list[dict] | None = None) -> Page:
    write_lines(folder / "metrics.jsonl", metrics)
    if events is not None:
        write_lines(folder / "events.jsonl", events)
    return Page(write_report(folder))


def test_a_real_run_is_reported(tmp_path: Path):
    config = small_config(
        monitor_every_steps=1,
        max_steps=3,
        evaluation=EvaluationConfig(every_steps=2, prompts=0, max_rows=2),
    )
    train(config, small_shards(tmp_path / "shards"), tmp_path / "out", single("cpu"))
    page = Page(write_report(tmp_path / "out"))
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
    assert page.tiles()["Steps"] == "3"


def test_the_page_loads_nothing(tmp_path: Path):
    page = report(tmp_path, [metrics_row(1), metrics_row(2)])
    assert not page.addresses
    assert "link" not in page.tags
    assert page.tags.count("script") == 3


def test_headline_figures(tmp_path: Path):
    rows = [metrics_row(1), metrics_row(2, "clip", gradient_norm=70.5), metrics_row(2, "skip")]
    rows += [metrics_row(3, tokens_per_second=90.0, loss=2.5, data_wait_seconds=0.5)]
    tiles = report(tmp_path, rows, [event(1, "roll_back", 2)]).tiles()
    assert tiles == {
        "Steps": "3",
        "Tokens": "300",
        "Last loss": "2.5000",
        "Largest gradient norm": "70.500",
        "Steps clipped": "1",
        "Steps skipped": "1",
        "Rollbacks": "1",
        "Throughput": "50",
        "Waiting for data": "10.00 %",
    }


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
    x, y = Page(path).trace("Gradient norm", "gradient norm")
    assert len(x) < 2000
    assert x[y.argmax()] == 54_322
    assert y.max() == 777
    assert path.stat().st_size < 10e6


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
    assert page.tiles()["Steps"] == "8"


def test_a_rollback_that_no_step_has_followed_yet_is_known_from_its_event(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [metrics_row(step) for step in range(1, 11)])
    rolled_back = {"event": "rolled_back", "step": 4, "data_step": 210}
    main, abandoned, _ = follow(read_table(tmp_path / "metrics.jsonl"), [rolled_back])
    assert main.tolist() == [0, 1, 2, 3]
    assert [piece.tolist() for piece in abandoned] == [[4, 5, 6, 7, 8, 9]]


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
        assert _array(mark["x"]).tolist() == [1]
        assert np.isfinite(_array(mark["y"])).all()


def test_a_run_of_nothing_but_nan_is_reported(tmp_path: Path):
    rows = [metrics_row(0, "skip", loss="nan", gradient_norm="nan") for _ in range(3)]
    page = report(tmp_path, rows)
    assert page.tiles()["Last loss"] == "–"
    assert page.tiles()["Steps skipped"] == "3"
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
    assert _array(mark["y"]).tolist() == [8.0]
    (mark,) = (trace for trace in page.traces("Loss") if trace["name"] == "restore rate")
    assert _array(mark["y"]) == pytest.approx([3.003])  # has no loss of its own: that of its step
    texts = [text.strip() for text in page.texts]
    assert [t for t in texts if re.fullmatch(r"d\d", t)] == ["d1", "d2", "d4"]


def test_of_too_many_events_the_hardest_stay():
    events = [event(i, "clip", i) for i in range(900)]
    events[450] = event(450, "stop", 450)
    events[700] = event(700, "skip", 700)
    shown = hardest(events, 3)
    assert [found["event"] for found in shown] == ["clip", "stop", "skip"]


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


def test_the_newest_speech_can_be_heard(tmp_path: Path):
    for step, sound in ((1, b"old"), (2, b"new")):
        folder = tmp_path / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "00.wav").write_bytes(sound)
        sample = {"prompt": {"name": "こんにちは"}, "wav": "00.wav"}
        text = json.dumps({"codec": "UNTRAINED", "samples": [sample]})
        (folder / "samples.json").write_text(text, encoding="utf-8")
    page = report(tmp_path, [metrics_row(1)])
    assert page.addresses == [f"data:audio/wav;base64,{base64.b64encode(b'new').decode()}"]
    assert any("こんにちは" in text for text in page.texts)
    assert any("UNTRAINED" in text for text in page.texts)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "evaluations.jsonl"])
def test_a_chart_without_data_says_so(tmp_path: Path, name: str):
    write_lines(tmp_path / name, [{"step": 1, "data_step": 1, "event": "started", "loss": 2.0}])
    page = Page(write_report(tmp_path))
    missing = sum("There is no data" in text for text in page.texts)
    assert missing == {"metrics.jsonl": 11, "events.jsonl": 12, "evaluations.jsonl": 11}[name]


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"holds no training run.*Name the folder"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="holds no training run"):
        write_report(tmp_path / "nowhere")


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [metrics_row(1), metrics_row(2)])
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "lo')
    assert len(read_run(tmp_path).main) == 2
    path.write_text(f"{whole}oops\n")
    with pytest.raises(ContractError, match=r"line 3 of .*metrics.jsonl"):
        write_report(tmp_path)
