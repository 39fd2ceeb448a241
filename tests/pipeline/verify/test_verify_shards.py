"""`koe verify` refuses damage to order, shards, index and card, though all else agrees with it."""

import json
import shutil

import pytest

from koe.dataflow import CARD
from koe.schema import SPEECH
from tests.forging import Forged, refused, sound_run

pytestmark = pytest.mark.slow

FIRST, LAST = "train-00000", "validation-00000"
ORDER, LEFT_OUT = "interleave/order.arrow", "interleave/order.excluded.arrow"
SHARD = f"shards/{FIRST}.arrow"
OVERLONG, CLIP, TEXT = 0, 1, 2  # rows of LEFT_OUT: text/s17, clips/0.flac, text/s3


@pytest.fixture
def forged(tmp_path_factory, tmp_path):
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    return Forged(tmp_path / "run")


def left_out(forged, row, **fields):
    """Change an excluded row of the order and let the receipt count what is there."""
    forged.rows(LEFT_OUT, lambda rows: rows[row].update(fields))
    rows = forged.storage.read_table(LEFT_OUT).to_pylist()
    counts = {"rejected": {}, "quarantined": {}}
    for found in rows:
        reasons = counts[found["outcome"]]
        reasons[found["reason"]] = reasons.get(found["reason"], 0) + 1
    forged.amend("interleave", "order", **counts)
    forged.seal()


def leave_out_twice(forged):
    forged.rows(LEFT_OUT, lambda rows: rows.__setitem__(TEXT, rows[CLIP]))
    forged.seal()


def leave_out_another(forged):
    """Leave out a sample that is not too long, in place of the one that is."""
    unit = forged.units("text")[1]
    left_out(forged, OVERLONG, id="text/s18", location=f"{unit}#3")


def keep_the_later(forged):
    """Let the second clip of an id stay and the first be the duplicate."""
    left_out(forged, CLIP, location=f"{forged.units(SPEECH)[0]}#0")


def reorder(forged, change, remake=True):
    """Change pieces of the order; the shards are made of it anew, or left out."""
    forged.rows(ORDER, change)
    if remake:
        forged.remake_shards()
        return
    forged.seal()
    for entry in forged.index()["shards"]:
        forged.storage.remove(f"interleave/{entry['path'].removesuffix('.arrow')}.json")
    forged.storage.remove("shards/index.json")


def piece(row, sample):
    """Let a piece of the order be all of the sample (unit, row, tokens)."""
    row.update(unit=sample[0], sample=sample[1], start=0, stop=sample[2])


def shift(rows, tokens):
    """Move the border of the first two pieces of the clip that is cut."""
    first, second = (next(r for r in rows if (r["unit"], r["sample"], r["part"]) == (0, 2, part)) for part in (0, 1))  # fmt: skip
    first["stop"] += tokens
    second["start"] += tokens


def merge_rows(rows):
    """Put the second row of a shard into the first, which has no room for it."""
    for row in rows:
        row["row"] -= row["shard"] == FIRST and row["row"] > 0


def interleave_shards(rows):
    rows[0]["shard"] = LAST


def leave_a_row_out(rows):
    for row in rows:
        row["row"] += row["shard"] == FIRST and row["row"] > 2


def place_what_is_left_out(forged):
    ids = forged.storage.read_table(f"tokenize/{forged.units(SPEECH)[3]}.arrow")["input_ids"]
    reorder(forged, lambda rows: piece(rows[6], (3, 0, len(ids[0].as_py()))))


def row_of(forged, **fields):
    """Change fields of the first row of a shard."""
    forged.rows(SHARD, lambda rows: rows[0].update(fields))
    forged.seal()


def entry_of(forged, column, value, at=1):
    """Change what the first row says of its second document."""
    forged.rows(SHARD, lambda rows: rows[0][column].__setitem__(at, value))
    forged.seal()


def shorter(forged, column):
    forged.rows(SHARD, lambda rows: rows[0][column].pop())
    forged.seal()


def drop_row(forged):
    forged.rows(SHARD, lambda rows: rows.pop())
    forged.seal()


def swap_tokens(forged):
    """Swap two codes of one document: all counts stay."""
    document = forged.storage.read_table(SHARD)["input_ids"][1].as_py()
    document[20], document[21] = document[21], document[20]
    forged.rows(SHARD, lambda rows: rows[1].update(input_ids=document))
    forged.seal()


def more_tokens(forged):
    forged.rows(SHARD, lambda rows: rows[0]["input_ids"].append(5))
    forged.seal()


def rename_codec(forged):
    table = forged.storage.read_table(SHARD)
    koe = table.schema.metadata[b"koe"].replace(b"UNTRAINED", b"trained")
    forged.storage.write_table(SHARD, table.replace_schema_metadata({"koe": koe}))
    forged.seal()


def measure(forged, unit, name, more=1):
    measures = forged.receipt("interleave", unit).measures
    forged.amend("interleave", unit, measures=measures | {name: measures.get(name, 0) + more})


def content_of(forged, stage, units, **fields):
    for unit in units:
        content = forged.receipt(stage, unit).content
        forged.amend(stage, unit, content=content | fields)


DAMAGE = {
    "a duplicate left out for another reason": (lambda f: left_out(f, CLIP, reason="ratio_exhausted"), "clips/0.flac of unit clips-.*-00003 has the id of an earlier"),
    "the later of two samples stays": (keep_the_later, "clips/0.flac of unit clips-.*-00000 is excluded as a duplicate"),
    "left out as a duplicate of none": (lambda f: left_out(f, OVERLONG, reason="duplicate_id"), "text/s17 .* is excluded as a duplicate because no earlier"),
    "another id is left out": (lambda f: left_out(f, TEXT, id="text/x"), f"{LEFT_OUT}:2 must not leave out text/x because row 5"),
    "of another source": (lambda f: left_out(f, TEXT, source="x"), f"{LEFT_OUT}:2 must not leave out text/s3 because its stage and source"),
    "left out twice": (leave_out_twice, f"{LEFT_OUT}:2 must not leave out clips/0.flac because it is excluded twice"),
    "overlong but short": (leave_out_another, f"{LEFT_OUT}:0 must not leave out text/s18 because its .* tokens are not too long"),
    "nowhere": (lambda f: left_out(f, OVERLONG, location="text"), f"{LEFT_OUT}:0 does not say where"),
    "in no unit": (lambda f: left_out(f, OVERLONG, location="x#1"), f"{LEFT_OUT}:0 lies in unit 'x'"),
    "the order's counts": (lambda f: f.amend("interleave", "order", rejected={"overlong": 2}), "record counts of interleave/order.json.*47 in and 48 out"),
    "the order's reasons": (lambda f: f.amend("interleave", "order", rejected={"long": 1}), "record counts of interleave/order.json.*1 rejected for long.*holds 0"),
    "the order's input": (lambda f: f.amend("interleave", "order", input_sha256="0" * 64), "order.json was made from another input"),
    "placed by source": (lambda f: measure(f, "order", "placed.clips"), "order.json counts 8 placed.clips because there are 7"),
    "shards of the order": (lambda f: measure(f, "order", "shards"), "order.json counts 5 shards because there are 4"),
    "seconds left out": (lambda f: measure(f, "order", "seconds_left_out.clips"), "order.json counts 1.57 seconds_left_out.clips because there are 0.57"),
    "a sample is forgotten": (lambda f: reorder(f, lambda rows: rows.pop(1)), "sample text/s11 of unit .* is in no shard"),
    "a sample twice in a shard": (lambda f: reorder(f, lambda rows: piece(rows[9], (5, 13, 21))), "places sample text/s28 of unit .* in train-00000 because it was placed before"),
    "a sample twice in two shards": (lambda f: reorder(f, lambda rows: piece(rows[15], (4, 10, 53))), "places sample text/s11 of unit .* in train-00001 because it was placed before"),
    "a piece twice": (lambda f: reorder(f, lambda rows: rows[2].update(start=249, stop=375, part=2)), "pieces of sample clips/2.flac .* are not all of it because part 2"),
    "a sample left out is placed": (place_what_is_left_out, "places sample clips/0.flac of unit .*-00003 in train-00000 because its excluded table"),
    "a sample whose end is cut off": (lambda f: reorder(f, lambda rows: rows[1].update(stop=52)), "pieces of sample text/s11 .* are not all of it"),
    "tokens between two pieces are lost": (lambda f: reorder(f, lambda rows: rows[2].update(start=130)), "pieces of sample clips/2.flac .* are not all of it because part 1"),
    "cut inside a frame": (lambda f: reorder(f, lambda rows: shift(rows, -1)), "pieces of sample clips/2.flac .* cut between frames"),
    "parts numbered otherwise": (lambda f: reorder(f, lambda rows: rows[2].update(part=4)), "pieces of sample clips/2.flac .* are not all of it"),
    "tokens that no sample has": (lambda f: reorder(f, lambda rows: rows[1].update(stop=54), remake=False), "the order gives train-00000:0 tokens 0 to 54 of sample 10"),
    "a sample that no unit has": (lambda f: reorder(f, lambda rows: rows[1].update(sample=14), remake=False), "the order gives train-00000:0 tokens 0 to 53 of sample 14"),
    "an unknown unit": (lambda f: reorder(f, lambda rows: rows[1].update(unit=7), remake=False), f"{ORDER}:1 names unit 7"),
    "an order that goes back to a shard": (lambda f: reorder(f, interleave_shards, remake=False), f"{ORDER}:38 returns to {LAST}"),
    "an order without a row": (lambda f: reorder(f, leave_a_row_out, remake=False), "the order of train-00000 has row 4 at piece 6"),
    "a row over the bound": (lambda f: reorder(f, merge_rows), f"{SHARD}:0 has 248 tokens in documents of 248 because a row holds at most 128"),
    "the shard's settings": (lambda f: content_of(f, "interleave", [FIRST], seed=1), f"{FIRST}.json names other settings than interleave/order.json"),
    "the shard's order": (lambda f: f.amend("interleave", FIRST, input_sha256="0" * 64), f"{FIRST}.json was made from another input"),
    "the shard's pieces": (lambda f: f.amend("interleave", FIRST, records_in=15, kept=15), f"{FIRST}.json counts 15 pieces in and 15 out because the order gives the shard 14"),
    "the shard's tokens": (lambda f: measure(f, FIRST, "tokens.text"), f"{FIRST}.json counts .* tokens.text"),
    "the shard's longest row": (lambda f: measure(f, FIRST, "longest_row_tokens", -1), f"{FIRST}.json counts .* longest_row_tokens"),
    "no receipt of a shard": (lambda f: f.storage.remove(f"interleave/{FIRST}.json"), f"index.json describes shards .*{FIRST}.json is missing"),
    "a row is gone": (drop_row, f"{SHARD} has 5 rows because the order has 6"),
    "a document is gone": (lambda f: shorter(f, "document_ids"), f"{SHARD}:0 lists 1 document_ids"),
    "a token more": (more_tokens, f"{SHARD}:0 has 123 tokens in documents of 122"),
    "tokens swapped": (swap_tokens, f"document clips/2.flac in {SHARD}:1 differs from its tokenized sample because token 20"),
    "another id": (lambda f: entry_of(f, "document_ids", "text/x"), f"document text/x in {SHARD}:0 differs from its tokenized sample because the order names text/s11"),
    "another source": (lambda f: entry_of(f, "document_sources", "x"), f"document text/s11 in {SHARD}:0 is not the piece .* document_sources says 'x'"),
    "another modality": (lambda f: entry_of(f, "document_modalities", SPEECH), f"document text/s11 in {SHARD}:0 is not .* document_modalities says 'speech'"),
    "another unit": (lambda f: entry_of(f, "document_units", "x"), f"document text/s11 in {SHARD}:0 is not .* document_units says 'x'"),
    "another part": (lambda f: entry_of(f, "document_parts", 1), f"document text/s11 in {SHARD}:0 is not .* document_parts says 1"),
    "another length": (lambda f: row_of(f, document_lengths=[68, 54]), f"document text/s13 in {SHARD}:0 is not .* document_lengths says 68"),
    "another codec in the metadata": (rename_codec, f"metadata of {SHARD} names another codec"),
    "another tokenizer in a unit": (lambda f: content_of(f, "tokenize", f.units(SPEECH)[:1], tokenizer_sha256="0" * 64), "tokenize/clips-.*-00000.json names another tokenizer than interleave/order.json"),
    "another codec in a unit": (lambda f: content_of(f, "encode", f.units(SPEECH)[1:2], codec={"label": "x"}), "encode/clips-.*-00001.json names another codec than interleave/order.json"),
    "no order": (lambda f: f.storage.remove("interleave/order.json"), "index.json describes shards without an order"),
    "a truncated index": (lambda f: f.storage.write_bytes("shards/index.json", b'{"shards": ['), "shards/index.json is not valid JSON"),
    "no index": (lambda f: f.storage.write_bytes("shards/index.json", b"[]"), "shards/index.json is not a shard index"),
    "a shard that nobody names": (lambda f: f.storage.write_bytes("shards/train-00009.arrow", b""), "shards/train-00009.arrow is not a shard of this run"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_order_and_shards_is_refused(forged, name):
    damage, words = DAMAGE[name]
    damage(forged)
    refused(forged, words)


def test_every_word_of_the_index_is_proved(forged):
    index = forged.index()
    for key in index.keys() - {"shards"}:
        forged.write_index(index | {key: "x"})
        refused(forged, f"shards/index.json says 'x' for {key} because interleave/order.json")
    for place, entry in enumerate(index["shards"]):
        for key in entry.keys() - {"path"}:
            other = json.loads(json.dumps(index))
            other["shards"][place][key] = "x"
            forged.write_index(other)
            refused(forged, f"index.json of {entry['path']} says 'x' for {key}")
    forged.write_index(index | {"shards": index["shards"][1:]})
    refused(forged, f"index.json names 3 shards, the order 4 because {FIRST}.arrow")
    forged.write_index(index | {"shards": index["shards"][::-1]})
    refused(forged, "index.json names 4 shards, the order 4 because their order differs")
    forged.write_index(index)
    forged.verify()


def test_every_line_of_the_card_is_proved_but_its_front_matter(forged):
    lines = forged.storage.read_bytes(CARD).decode().splitlines()
    body = lines.index("---", 1) + 1
    for number in range(body, len(lines)):
        other = [*lines[:number], lines[number] + "1", *lines[number + 1 :]]
        forged.storage.write_bytes(CARD, "\n".join(other).encode())
        refused(forged, f"{CARD}:{number + 1} does not agree with the run")
    forged.storage.write_bytes(CARD, "\n".join(lines[:-3]).encode())
    refused(forged, f"{CARD}:[0-9]+ does not agree with the run because it says None")
    forged.storage.write_bytes(CARD, b"\xff")
    refused(forged, f"{CARD} is not UTF-8 text")
    front = ["---", "license: cc-by-4.0", "language: [ja]", "---"]
    for edited in ([*front, *lines[body:]], lines[body:]):
        forged.storage.write_bytes(CARD, "\n".join(edited).encode())
        assert forged.verify()[-1].unit == "card"
