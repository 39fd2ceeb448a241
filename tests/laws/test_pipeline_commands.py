"""The commands on a finished run: their JSON, their errors, and what inspect writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.trace.document import documents_of
from tests import calling
from tests.corpus import opened, opened_shard, write_corpus
from tests.laws.test_pipeline import run


def koe(*arguments: str) -> subprocess.CompletedProcess[str]:
    code, out, err = calling.koe(*arguments)
    return subprocess.CompletedProcess(arguments, code, out, err)


def koe_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run koe in a process of its own, whose stdout also holds what libraries write there."""
    code = "from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_command_line_json_and_errors(finished_run):
    stats = koe_process("stats", "-c", str(finished_run), "--json")
    assert stats.returncode == 0, stats.stderr
    assert json.loads(stats.stdout)["accounting"]["clips_in"] == 12
    status = koe("status", "-c", str(finished_run), "--json")
    assert all(row["left"] == 0 for row in json.loads(status.stdout))
    shown = koe("inspect", "train-00000:0", "-c", str(finished_run))
    assert shown.returncode == 0, shown.stderr
    assert "train" not in shown.stderr
    wrong = koe("stats", "-c", "nowhere.yaml")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("koe: nowhere.yaml does not exist")
    assert koe("stats", "--nonsense").returncode == 2


@pytest.mark.slow
def test_score_and_encode_json_contract(finished_run):
    good, bad = str(finished_run.parent / "0.flac"), str(finished_run.parent / "empty.wav")
    scored = koe_process("score", good, bad, "--json")
    assert scored.returncode == 1
    first, second = json.loads(scored.stdout)
    assert first.keys() >= {"path", "seconds", "windows", "sig", "bak", "ovrl", "keep"}
    assert second.keys() == {"path", "error"}
    encoded = koe("encode", good, "-c", str(finished_run), "--json")
    assert encoded.returncode == 0, encoded.stderr
    (row,) = json.loads(encoded.stdout)
    assert [len(codes) for codes in row["codes"]] == [k * row["frames"] for k in (1, 2, 4)]


@pytest.mark.slow
def test_inspect_writes_original_and_reconstruction(finished_run, tmp_path):
    _, ledger = opened(finished_run)
    index = json.loads(ledger.storage.read_bytes("shards/index.json"))
    shard = next(s for s in index["shards"] if s["tokens_by_modality"].get("speech"))
    rows = range(shard["rows"])
    row = next(
        r
        for r in rows
        if any(d.codes is not None for d in documents_of(opened_shard(ledger, shard["path"]), r))
    )
    shown = koe(
        "inspect", f"{shard['path']}:{row}", "-c", str(finished_run), "--wav", str(tmp_path / "w")
    )
    assert shown.returncode == 0, shown.stderr
    names = sorted(path.name for path in (tmp_path / "w").iterdir())
    assert any(name.endswith("original.wav") for name in names)
    assert any(name.endswith("reconstruction.wav") for name in names)


@pytest.mark.slow
def test_inspect_tells_the_outcome_of_a_record(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    run(corpus)
    plan, ledger = opened(corpus)
    by_outcome: dict[str, tuple[str, str]] = {}
    for unit in (unit.unit for unit in plan.units_of("speech")):
        receipt = ledger.receipt("encode", unit)
        assert receipt is not None
        for row in ledger.read(receipt).to_pylist():
            by_outcome["kept"] = row["id"], row["audio_path"]
        excluded = ledger.read_excluded(receipt)
        for row in [] if excluded is None else excluded.to_pylist():
            by_outcome["rejected"] = row["id"], row["reason"]
    id, path = by_outcome["kept"]
    found = koe("inspect", id, "-c", str(corpus), "--json")
    assert found.returncode == 0, found.stderr
    (record,) = json.loads(found.stdout)["records"]
    assert {stage["outcome"] for stage in record["stages"]} == {"kept"}
    (place,) = record["places"]
    in_row = koe("inspect", f"{place['shard']}:{place['row']}", "-c", str(corpus), "--json")
    document = json.loads(in_row.stdout)["documents"][place["document"]]
    assert (document["id"], document["text"]) == (id, record["text"])

    Path(path).unlink()
    shown = koe("inspect", id, "-c", str(corpus), "--wav", str(tmp_path / "gone"))
    assert shown.returncode == 0, shown.stderr
    assert f"the original of {id} cannot be read" in shown.stderr
    (file,) = (tmp_path / "gone").iterdir()
    assert file.name.endswith("reconstruction.wav")

    low, reason = by_outcome["rejected"]
    shown = koe("inspect", low, "-c", str(corpus), "--wav", str(tmp_path / "low"))
    assert shown.returncode == 0, shown.stderr
    assert reason in shown.stdout
    (file,) = (tmp_path / "low").iterdir()
    assert file.name.endswith("original.wav")
    assert koe("inspect", "clips/none", "-c", str(corpus)).returncode == 2
