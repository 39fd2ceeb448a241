"""What corpora hold neither commands the terminal nor floods it."""

import pytest

from koe.printable import escape_control_characters, shorten_list
from koe.schema import SPEECH, TEXT
from pipeline.terminal.trace import documents_view, records_view
from pipeline.trace.document import Document
from pipeline.trace.record import RecordTrace, StageOutcome
from tests.written_run import CODES, SPOKEN, WRITTEN, clip, shown

EVIL = "\x1b]0;owned\x07\x9b31m\u202egpj\u2066\x7f\r"


def test_controls_become_symbols_and_all_else_stays():
    assert escape_control_characters(EVIL) == "␛]0;owned␇\\x9b31m\\u202egpj\\u2066␡␍"
    plain = "日本語 é 🎌\n\tsecond"
    assert escape_control_characters(plain) == plain


def test_inspect_shows_no_control_character_of_a_corpus():
    of_clip = clip("a/0") | {
        "text": EVIL, "speaker": EVIL, "audio_path": EVIL, "audio_member": EVIL, "p808": None,
        "start_seconds": 0.0,
    }  # fmt: skip
    documents = [
        Document(f"a/{EVIL}", "a", SPEECH, EVIL, 0, SPOKEN, CODES, of_clip),
        Document(f"t/{EVIL}", "t", TEXT, EVIL, 0, WRITTEN, None, None),
    ]
    outcome = StageOutcome("ingest", "quarantined", EVIL, EVIL, EVIL)
    records = [
        RecordTrace(f"a/{EVIL}", "a", SPEECH, EVIL, (outcome,), of_clip),
        RecordTrace(f"t/{EVIL}", "t", TEXT, EVIL, (), input_ids=WRITTEN),
    ]
    for view in (
        documents_view(documents, lambda ids: EVIL, raw=False),
        documents_view(documents, lambda ids: EVIL, raw=True),
        records_view(records, lambda ids: EVIL),
    ):
        text = shown(view)
        assert "␛]0;owned" in text
        assert not set(text) & set("\x1b\x07\x9b\u202e\u2066\x7f\r")


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        ([], "x", "none"),
        (["b", "a"], "a", "b, a"),
        ([f"n{k}" for k in range(7)], "", "n0, n1, n2, n3, n4 …and 2 more"),
        (["\x1b[2J"], "", "␛[2J"),
    ],
)
def test_names_are_listed_as_far_as_five_go(names, wanted, expected):
    assert shorten_list(names, wanted) == expected


def test_of_many_names_the_nearest_come_first():
    names = [f"corpus-{k:03d}" for k in range(1500)]
    found = shorten_list(names, "corpus_1499")
    assert found.startswith("corpus-1499, ")
    assert found.count("corpus-") == 5
    assert found.endswith(" …and 1,495 more")
