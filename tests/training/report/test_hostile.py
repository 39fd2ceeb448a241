"""Transcripts and names that attack whoever looks at a run: the page, TensorBoard, the terminal."""

from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from koe.printable import escape_control_characters
from pipeline.terminal.results import replay_view
from tests.training.helpers import small_config
from tests.training.logs import event, metrics_row, report
from training.metrics import TENSORBOARD_FOLDER, RunLog
from training.monitor import DocumentLoss
from training.replay import Replay

MARKS = "\u202e\u2066\u200f"  # turn or isolate what follows
TEXTS = {
    "script": "</script><script>alert(1)</script>",
    "style": "</style></template></textarea><svg onload=alert(1)>",
    "markdown": "[x](javascript:alert(1)) ![y](http://evil/z.png) `code` <b>bold</b>\n# head\n---",
    "control": "\x00\x07\x1b[2J\x1b]8;;http://evil\x07link\x1b]8;;\x07\x9b31m\r\b",
    "turned": f"abc{MARKS}gnp.exe",
    "long": "あ" * 1_000_000,
    "long word": "x" * 1_000_000,
}
hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())


def page_of(folder, text):
    documents = [{"row": 0, "id": text, "source": text, "loss": 4.0}]
    path = folder / "samples/step-00000002/samples.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps(
            {
                "codec": text,
                "samples": [
                    {
                        "prompt": {"name": text},
                        "text": text,
                        "heard": text,
                        "ovrl": text,
                        "character_error_rate": text,
                    }
                ],
            }
        )
    )
    rows = [metrics_row(step, loss_by_source={text: 3.0}) for step in (1, 2)]
    events = [event(1, "skip", 2, reason=text, documents=documents)]
    return report(folder, rows, events)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The page of a harmless text, and its size."""
    folder = tmp_path_factory.mktemp("plain")
    return page_of(folder, "a clip"), (folder / "report.html").stat().st_size


@hostile
def test_a_page_shows_a_text_and_is_neither_changed_nor_flooded_by_it(tmp_path, plain, text):
    page = page_of(tmp_path, text)
    assert page.tags == plain[0].tags, "no element comes of it"
    assert (tmp_path / "report.html").stat().st_size < plain[1] + 100_000
    for shown in page.elements:
        assert not any(name.startswith("on") for name in shown.named)
    assert not any("javascript:" in value for _, value in _links(page))


def _links(page):
    return [
        (name, value)
        for element in page.elements
        for name, value in element.named.items()
        if name in ("href", "src", "action", "srcdoc")
    ]


def test_what_turns_letters_turns_its_own_text_only(tmp_path):
    page_of(tmp_path, TEXTS["turned"])
    markup = (tmp_path / "report.html").read_text(encoding="utf-8")
    body = markup[markup.index("<main") : markup.index("</main>")]
    for found in re.finditer(MARKS[0], body):
        before = body[: found.start()]
        inside_bdi = before.rfind("<bdi>") > before.rfind("</bdi>")
        inside_own_block = before.rfind("<p>") > before.rfind("</p>")
        in_attribute = before.rfind('="') > before.rfind('">')
        assert inside_bdi or inside_own_block or in_attribute, before[-80:]


def tags_of(folder):
    values = [
        value
        for path in folder.iterdir()
        for record in EventFileLoader(str(path)).Load()
        for value in record.summary.value
    ]
    assert not any(value.metadata.summary_description for value in values)
    assert {value.metadata.plugin_data.plugin_name for value in values} <= {"", "scalars", "audio"}
    return {value.tag for value in values}


@hostile
def test_tensorboard_gets_no_text_and_short_harmless_tags(tmp_path, text):
    log = RunLog(tmp_path, 0, small_config())
    row = metrics_row(1, loss_by_source={text: 3.0}, loss_by_modality={}, clipped_to=1.0)
    log.step(row | {"mfu_causal": None})
    log.close()
    tags = tags_of(tmp_path / TENSORBOARD_FOLDER)
    assert any(tag.startswith("train/loss_by_source/") or "…" in tag for tag in tags)
    for tag in tags:
        assert len(tag) <= 210
        assert tag == escape_control_characters(tag)


def replay_of(text: str) -> Replay:
    """Return the replay of an event with one document, whose id and source are a text."""
    document = DocumentLoss(0, text, text, "text", 3, 1.0)
    head = {
        "id": "E1",
        "event": "skip",
        "step": 1,
        "reason": "r",
        "loss": 1.0,
        "gradient_norm": 1.0,
    }
    return Replay(head, 1, 1.0, 1.0, {0: 1.0}, [document])


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_replay_commands_no_terminal(text):
    console = Console(file=io.StringIO(), width=200)
    console.print(replay_view(replay_of(text)))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


@hostile
def test_a_replay_is_of_bounded_size(text):
    console = Console(file=io.StringIO(), width=200)
    console.print(replay_view(replay_of(text)))
    assert len(console.file.getvalue()) < 5_000  # pyright: ignore[reportAttributeAccessIssue]
