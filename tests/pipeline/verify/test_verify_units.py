"""`koe verify` refuses damage to a unit, though hashes and receipts were made to agree with it."""

import shutil

import numpy as np
import pytest

from koe.fingerprint import sha256_bytes
from koe.schema import SPEECH, TEXT
from koe.vocabulary import SLOTS, drop_repeated_frames, speech_ids, split_speech_ids
from tests.forging import Forged, refused, sound_run

pytestmark = pytest.mark.slow

A, B, LOW = "clips-911e96708aef-00000", "clips-911e96708aef-00001", "clips-911e96708aef-00002"
STAGES = ("ingest", "score", "encode", "tokenize")
INGESTED, SCORED, ENCODED, TOKENIZED = (f"{stage}/{A}.arrow" for stage in STAGES)


@pytest.fixture
def forged(tmp_path_factory, tmp_path):
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    return Forged(tmp_path / "run")


def drop_column(forged, path, name):
    forged.storage.write_table(path, forged.storage.read_table(path).drop_columns([name]))
    forged.seal()


def change(forged, path, row, **fields):
    forged.rows(path, lambda rows: rows[row].update(fields))
    forged.seal()


def swap(forged, path):
    forged.rows(path, lambda rows: rows.reverse())
    forged.seal()


def rename_unit(forged):
    data = forged.storage.read_bytes("plan.json")
    forged.storage.write_bytes("plan.json", data.replace(B.encode(), A.encode()))


def turn_modality(forged):
    data = forged.storage.read_bytes("plan.json")
    other = data.replace(b'"clips": "speech"', b'"clips": "text"')
    assert other != data
    forged.storage.write_bytes("plan.json", other)


def write_garbage(forged):
    data = b"ARROW1" + bytes(100)
    forged.storage.write_bytes(SCORED, data)
    said = {"sha256": sha256_bytes(data), "num_bytes": len(data)}
    forged.amend("score", A, output=forged.receipt("score", A).output.model_copy(update=said))


def drop_row(forged):
    forged.rows(ENCODED, lambda rows: rows.pop())
    forged.seal()


def forget_threshold(forged):
    content = forged.receipt("encode", A).content
    forged.amend("encode", A, content={k: v for k, v in content.items() if k != "threshold_ovrl"})


def count_rows(forged):
    output = forged.receipt("score", A).output
    forged.amend("score", A, output=output.model_copy(update={"rows": 9}))


def measure(forged, stage, name):
    measures = forged.receipt(stage, A).measures
    forged.amend(stage, A, measures=measures | {name: measures[name] + 1})


def exclude_a_kept_clip(forged):
    """Clips 5 and 6 are kept and 7 is rejected: let 6 be rejected in its place."""
    change(forged, f"encode/{LOW}.excluded.arrow", 0, id="clips/6.flac")


def set_threshold(forged, threshold):
    for unit in forged.units(SPEECH):
        content = forged.receipt("encode", unit).content
        forged.amend("encode", unit, content=content | {"threshold_ovrl": threshold})


def falsify_score(forged):
    """Lift a rejected clip's score where it was taken, so that only encode contradicts it."""
    change(forged, f"score/{LOW}.arrow", 2, ovrl=3.0)


def add_frame(forged):
    """Take one frame more than there are codes, in the clip and in the record counts."""
    change(forged, ENCODED, 1, frames=9)
    measures = forged.receipt("encode", A).measures
    forged.amend("encode", A, measures=measures | {"frames": measures["frames"] + 1})


def set_code(forged, code):
    forged.rows(ENCODED, lambda rows: rows[1]["codes"].__setitem__(9, code))
    forged.seal()


def set_token(forged, unit, row, place, token):
    forged.rows(
        f"tokenize/{unit}.arrow", lambda rows: rows[row]["input_ids"].__setitem__(place, token)
    )
    forged.seal()


def other_code(forged):
    """Say another code of the same slot: grammar, shards and all hashes agree."""
    table = forged.storage.read_table(TOKENIZED)
    token = table["input_ids"][1].as_py()[-3]
    set_token(forged, A, 1, -3, token + 1 if (token - 128266) % 4096 < 4095 else token - 1)
    forged.remake_shards()


def of_text(forged, change_ids):
    unit = forged.units(TEXT)[0]
    forged.rows(f"tokenize/{unit}.arrow", lambda rows: change_ids(rows[2]["input_ids"]))
    forged.seal()


def other_content(forged):
    content = forged.receipt("score", A).content
    path = f"score/{A}.json"
    data = forged.receipt("score", A).model_copy(update={"content": content | {"windows": "all"}})
    forged.storage.write_bytes(path, data.model_dump_json().encode())


DAMAGE = {
    "two units of one name": (rename_unit, f"plan.json names two units {A}"),
    "a source of another modality": (turn_modality, f"unit {A} the modality speech.*clips has text"),
    "a column is gone": (lambda f: drop_column(f, SCORED, "bak"), f"{SCORED} has the wrong schema(.|\n)*bak"),
    "an id is null": (lambda f: change(f, SCORED, 1, id=None), f"{SCORED} holds 1 nulls in id"),
    "a token is null": (lambda f: set_token(f, A, 1, 3, None), f"{TOKENIZED} holds nulls inside the lists of input_ids"),
    "a file that is no table": (write_garbage, f"{SCORED} is not a complete Arrow file"),
    "a row less than is kept": (drop_row, f"record counts of encode/{A}.json.*counts 3 kept, its output has 2 rows"),
    "a setting is not named": (forget_threshold, f"encode/{A}.json does not name threshold_ovrl"),
    "the receipt counts other rows": (count_rows, f"{SCORED} is not the file .* it holds 3 rows, not 9"),
    "the receipt is of another unit": (lambda f: f.amend("score", A, unit=B), f"score/{A}.json is the receipt of other work"),
    "settings do not hash": (other_content, f"score/{A}.json names other settings"),
    "another input": (lambda f: f.amend("encode", A, input_sha256="0" * 64), f"encode/{A}.json was made from another input"),
    "more came in": (lambda f: f.amend("ingest", A, records_in=5, rejected={"x": 1}), f"record counts of ingest/{A}.json.*4 came in.*5 in"),
    "one is lost": (lambda f: f.amend("score", A, quarantined={}), f"record counts of score/{A}.json.*4 in and 3 out"),
    "another reason": (lambda f: f.amend("encode", LOW, rejected={"bad": 1}), f"record counts of encode/{LOW}.json.*1 rejected for bad.*holds 0"),
    "kept without a row": (lambda f: f.amend("encode", LOW, rejected={}, kept=3), f"record counts of encode/{LOW}.json.*below_threshold"),
    "measures do not add up": (lambda f: measure(f, "encode", "frames"), f"{ENCODED} holds .* frames"),
    "an invented id": (lambda f: change(f, SCORED, 1, id="clips/x"), f"{SCORED} holds clips/x in row 1"),
    "an id twice": (lambda f: change(f, SCORED, 1, id="clips/0.flac"), f"{SCORED}:1 repeats the id clips/0.flac"),
    "kept and excluded": (exclude_a_kept_clip, f"encode/{LOW}.arrow does not account for clips/6.flac exactly once"),
    "an excluded record nobody knows": (lambda f: change(f, f"encode/{LOW}.excluded.arrow", 0, id="clips/x"), f"excluded table of encode/{LOW}.arrow holds clips/x"),
    "excluded by another stage": (lambda f: change(f, f"encode/{LOW}.excluded.arrow", 0, stage="score"), "has 'score' for stage in row 0"),
    "of another source": (lambda f: change(f, INGESTED, 1, source="x"), f"{INGESTED} has 'x' for source in row 1"),
    "out of order": (lambda f: swap(f, ENCODED), f"{ENCODED}:1 is out of order"),
    "another text": (lambda f: change(f, SCORED, 1, text="別"), rf"{SCORED}:1 \(clips/1.flac\) has another text"),
    "another score": (lambda f: change(f, ENCODED, 1, bak=1.5), rf"{ENCODED}:1 \(clips/1.flac\) has another bak"),
    "kept below the threshold": (lambda f: set_threshold(f, 1.9), rf"{ENCODED}:0 \(clips/0.flac\) was kept with ovrl 1\.8"),
    "rejected above the threshold": (falsify_score, f"clips/7.flac was rejected by encode/{LOW}.arrow with ovrl 3"),
    "a frame without codes": (add_frame, rf"{ENCODED}:1 \(clips/1.flac\) holds 56 codes for its 9 frames"),
    "a code out of range": (lambda f: set_code(f, 4096), rf"{ENCODED}:1 \(clips/1.flac\) holds"),
    "encode's codes changed": (lambda f: set_code(f, 77), f"{TOKENIZED}:1 holds other codes.*clips/1.flac"),
    "a sample's codes changed": (other_code, f"{TOKENIZED}:1 holds other codes.*clips/1.flac"),
    "a code in a wrong slot": (lambda f: set_token(f, A, 1, -3, 128266), f"{TOKENIZED}:1: token 128266 in slot 6"),
    "speech without its end": (lambda f: set_token(f, A, 2, -1, 5), f"{TOKENIZED}:2: a speech document does not follow"),
    "text of a negative id": (lambda f: set_token(f, A, 0, 2, -1), f"{TOKENIZED}:0 holds"),
    "a turn without an answer's end": (lambda f: of_text(f, lambda ids: ids.__setitem__(-2, 7)), "text-.*00000.arrow:2: a text sample does not follow"),
    "a code in text": (lambda f: of_text(f, lambda ids: ids.__setitem__(3, 128300)), "text-.*00000.arrow:2: a text sample does not follow"),
    "text in a speech unit": (lambda f: change(f, TOKENIZED, 1, modality=TEXT), f"{TOKENIZED} has 'text' for modality in row 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_a_unit_is_refused(forged, name):
    damage, words = DAMAGE[name]
    damage(forged)
    refused(forged, words)


def test_rescored_clips_may_change_their_scores_and_no_others(forged):
    """A clip near the threshold is scored again in FP32: then its error is gone."""

    def inexact(rows):
        for row in rows:
            row["ovrl_error"] = 0.1

    forged.rows(SCORED, inexact)
    forged.rows(ENCODED, lambda rows: inexact(rows[1:]))
    change(forged, ENCODED, 0, ovrl=1.5)
    words = rf"{ENCODED}:0 \(clips/0.flac\) has another ovrl"
    refused(forged, words)
    content = forged.receipt("encode", A).content
    forged.amend("encode", A, content=content | {"exact_scores": {}})
    forged.verify()
    change(forged, ENCODED, 2, ovrl=2.0)
    refused(forged, words.replace(":0", ":2").replace("0.flac", "2.flac"))


def repeat_a_code(forged):
    """Let the second frame of a clip begin with the first frame's code, and its sample hold it."""

    def change_sample(rows):
        text, codes = split_speech_ids(np.array(rows[1]["input_ids"]))
        codes[SLOTS] = codes[0]
        rows[1]["input_ids"] = speech_ids(text, codes).tolist()

    forged.rows(ENCODED, lambda rows: rows[1]["codes"].__setitem__(SLOTS, rows[1]["codes"][0]))
    forged.rows(TOKENIZED, change_sample)
    forged.seal()


def drop_repeats(rows):
    for row in rows:
        text, codes = split_speech_ids(np.array(row["input_ids"]))
        codes = drop_repeated_frames(codes)
        row.update(frames=len(codes) // SLOTS, input_ids=speech_ids(text, codes).tolist())


def test_repeated_frames_are_gone_where_the_receipt_says_so_and_only_there(forged):
    repeat_a_code(forged)
    forged.storage.remove("shards/index.json")
    forged.storage.remove("interleave/order.json")
    content, output = (getattr(forged.receipt("tokenize", A), n) for n in ("content", "output"))
    forged.amend("tokenize", A, content=content | {"drop_repeated_frames": True})
    refused(forged, f"{TOKENIZED}:[0-9] holds other codes.*without repeats")
    forged.rows(TOKENIZED, drop_repeats)
    rows = forged.storage.read_table(TOKENIZED).to_pylist()
    measures = {
        "frames": sum(row["frames"] for row in rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }
    forged.amend("tokenize", A, output=forged.vouch(output), measures=measures)
    forged.verify()
    forged.amend("tokenize", A, content=content)
    refused(forged, f"{TOKENIZED}:[0-9] holds other codes")
