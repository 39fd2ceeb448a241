"""`koe verify` proves a sound run wherever it lies, and what there is of a run that is not whole."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from koe.schema import SPEECH
from pipeline.run_dir.storage import Storage
from pipeline.verify import not_made, verify_run
from pipeline.verify.lists import TokenLists, flat, lengths
from tests.forging import Forged, refused, sound_run

STAGES = ("ingest", "score", "encode", "tokenize")
UNIT = "clips-911e96708aef-00000"


@pytest.fixture
def sound(tmp_path_factory):
    return sound_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def forged(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return Forged(tmp_path / "run")


def test_a_sound_run_is_proved_in_the_order_of_the_data(forged):
    told = []
    proofs = verify_run(forged.plan, forged.ledger, told.append)
    assert told == proofs
    assert len({proof.what for proof in proofs}) == 15
    units = forged.plan.units
    outputs = sum(4 if unit.modality == SPEECH else 1 for unit in units)
    samples = sum(forged.receipt("tokenize", unit.unit).kept for unit in units)
    clips = sum(forged.receipt("encode", unit).kept for unit in forged.units(SPEECH))
    records = sum(
        forged.receipt(stage, unit.unit).records_in
        for unit in units
        for stage in (STAGES if unit.modality == SPEECH else STAGES[-1:])
    )
    index = forged.index()["shards"]
    documents = sum(entry["documents"] for entry in index)
    assert [(proof.count, proof.unit) for proof in proofs] == [
        (len(units), "units"),
        (outputs + 5, "tables"),  # five of them excluded something
        (records, "records of stages"),
        (outputs, "outputs"),
        (clips, "clips"),
        (clips, "samples"),
        (samples - clips, "samples"),
        (samples, "samples"),
        (len(index), "shards"),
        (sum(entry["rows"] for entry in index), "rows"),
        (documents, "documents"),
        (samples, "samples"),
        (2, "identities"),
        (len(index), "shards"),
        (1, "card"),
    ]


@pytest.mark.parametrize("scheme", ["memory://verify", "file://"])
def test_a_remote_run_is_proved_and_refused_alike(sound, tmp_path, scheme):
    root = f"{scheme}{tmp_path}/remote"
    storage, local = Storage(root), Storage(str(sound))
    for path in (path for path in sound.rglob("*") if path.is_file()):
        name = str(path.relative_to(sound))
        storage.write_bytes(name, local.read_bytes(name))
    forged = Forged(root)
    assert forged.verify() == Forged(sound).verify()
    data = bytearray(storage.read_bytes(f"encode/{UNIT}.arrow"))
    data[len(data) // 2] ^= 1
    storage.write_bytes(f"encode/{UNIT}.arrow", data)
    refused(forged, f"encode/{UNIT}.arrow is not the file")


def test_a_run_that_is_not_whole_gives_fewer_proofs(forged):
    whole = forged.verify()
    forged.storage.remove("shards/README.md")
    assert forged.verify() == whole[:-1]
    forged.storage.remove("shards/index.json")
    assert [proof.what for proof in forged.verify()] == [proof.what for proof in whole[:-2]]
    forged.storage.remove("interleave/train-00001.json")
    (shards,) = (proof.count for proof in forged.verify() if "their receipts in" in proof.what)
    assert shards == len(forged.shards()) - 1
    forged.storage.remove("interleave/order.json")
    assert forged.verify() == whole[:7]
    for stage in ("encode", "tokenize"):
        forged.storage.remove(f"{stage}/{UNIT}.json")
    fewer = forged.verify()
    assert len(fewer) == 7
    assert fewer[1].count < whole[1].count
    for unit in forged.plan.units:
        for stage in STAGES:
            forged.storage.remove(f"{stage}/{unit.unit}.json")
    assert forged.verify() == whole[:1]


def test_what_is_not_made_is_named(forged):
    assert not_made(forged.plan, forged.ledger) == []
    storage = forged.ledger.storage
    storage.remove("shards/README.md")
    assert not_made(forged.plan, forged.ledger) == ["shards/README.md"]
    storage.remove("shards/index.json")
    storage.remove(f"tokenize/{UNIT}.json")
    storage.remove("interleave/order.json")
    assert not_made(forged.plan, forged.ledger) == [
        "tokenize of 1 units", "interleave/order.json", "shards/index.json", "shards/README.md",
    ]  # fmt: skip


def test_an_index_of_nothing_is_refused(forged):
    forged.ledger.storage.write_bytes("shards/index.json", b"null")
    refused(forged, "index.json is not a shard index")


def test_work_without_its_input_is_refused(forged):
    forged.storage.remove(f"encode/{UNIT}.json")
    refused(forged, f"tokenize/{UNIT}.json vouches for work without its input.*encode/{UNIT}.json")


def test_shards_of_a_unit_that_is_not_tokenized_are_refused(forged):
    forged.storage.remove(f"tokenize/{UNIT}.json")
    refused(forged, f"order.json.*unit {UNIT} is not tokenized")


@pytest.mark.slow
def test_a_flipped_byte_is_named_in_every_table(forged):
    tables = [
        output
        for unit in forged.plan.units
        for stage in (STAGES if unit.modality == SPEECH else STAGES[-1:])
        for receipt in [forged.receipt(stage, unit.unit)]
        for output in (receipt.output, receipt.excluded)
        if output
    ]
    order = forged.order()
    assert order.excluded
    tables += [order.output, order.excluded]
    tables += [forged.receipt("interleave", shard).output for shard in forged.shards()]
    for output in tables:
        data = forged.storage.read_bytes(output.path)
        broken = bytearray(data)
        broken[len(data) * 2 // 3] ^= 4
        forged.storage.write_bytes(output.path, broken)
        refused(forged, f"{output.path} is not the file .* SHA-256")
        forged.storage.write_bytes(output.path, data[:-1])
        refused(forged, f"{output.path} is not the file .* {len(data) - 1} bytes")
        forged.storage.remove(output.path)
        refused(forged, f"{output.path} is missing")
        forged.storage.write_bytes(output.path, data)
    forged.verify()


def test_hashes_that_collide_are_told_apart_by_the_ids(forged, monkeypatch):
    """All ids in one bucket: duplicates are still those that repeat an id, and only those."""
    take = "pipeline.verify.samples.SampleTable.take_hashes"
    monkeypatch.setattr(take, lambda samples: np.zeros(len(samples), np.int64))
    assert len(verify_run(forged.plan, forged.ledger)) == 15


def test_lists_are_read_where_they_lie_in_however_many_pieces():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 99, size).tolist() for size in (3, 0, 5, 1, 4, 2, 7)]
    parts = [pa.array(lists, pa.list_(pa.int32())).slice(*cut) for cut in ((0, 2), (2, 4), (6, 1))]
    column = pa.chunked_array(parts)
    assert flat(column).to_pylist() == [value for values in lists for value in values]
    assert lengths(column).tolist() == [len(values) for values in lists]
    rows = np.array([6, 0, 2, 4, 2])
    start, stop = np.array([1, 0, 2, 0, 0]), np.array([7, 2, 4, 4, 2])
    cut = TokenLists(column).cut(rows, start, stop)
    assert [c.tolist() for c in cut] == [
        lists[row][a:b] for row, a, b in zip(rows, start, stop, strict=True)
    ]
    empty = pa.chunked_array([], pa.list_(pa.int32()))
    assert (len(flat(empty)), len(lengths(empty)), len(TokenLists(empty))) == (0, 0, 0)
