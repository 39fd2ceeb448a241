"""What cannot be read of source files is a number in everything that counts records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from koe.numbers import not_readable
from tests.calling import koe
from tests.corpus import write_corpus
from tests.real_data import WORDS
from tests.stages.audio_files import write_tar

CLIPS, FIRST_LOST, LAST_LOST = 30, 10, 19
SAMPLES = 90


def _with_holes(folder: Path) -> tuple[Path, int]:
    """Write a tar of 30 clips of which ten lie in a hole, and an array of which a third is noise.

    Returns the configuration and the bytes of the hole in the tar.
    """
    config = write_corpus(folder)
    words = sorted(WORDS.glob("*.mp3"))
    members = []
    for number in range(CLIPS):
        members.append((f"{number:02d}.txt", f"語{number}".encode()))
        members.append((f"{number:02d}.mp3", words[number % len(words)].read_bytes()))
    infos = write_tar(folder / "a.tar", members)
    first, last = infos[2 * FIRST_LOST].offset, infos[2 * LAST_LOST + 2].offset
    tar = bytearray((folder / "a.tar").read_bytes())
    tar[first:last] = b"\x5a" * (last - first)
    (folder / "a.tar").write_bytes(tar)
    records = [{"instruction": f"問{n:02d}", "output": "答" * 20} for n in range(SAMPLES)]
    array = bytearray(json.dumps(records, ensure_ascii=False).encode())
    third = len(array) // 3
    array[third : 2 * third] = b"\x80" * third
    (folder / "a.json").write_bytes(array)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["sources"] = {
        "speech": [{"name": "tars", "kind": "webdataset", "paths": ["a.tar"]}],
        "text": [{"name": "arrays", "kind": "json", "paths": ["a.json"]}],
    }
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config, last - first


def _words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_lost_records_and_bytes_are_numbers_everywhere(tmp_path):
    config, hole = _with_holes(tmp_path)
    arguments = ("-c", str(config))
    code, planned, _ = koe("plan", *arguments, "--clips", "0", "--json")
    rows = {row["source"]: row for row in json.loads(planned)["sources"]}
    assert code == 0
    assert rows["tars"]["lost_bytes"] == hole
    assert 8 <= rows["tars"]["lost_records"] <= 12
    assert 25 <= rows["arrays"]["lost_records"] <= 35
    shown = {
        name: not_readable(row["lost_records"], row["lost_bytes"]) for name, row in rows.items()
    }
    planned = _words(koe("plan", *arguments, "--clips", "0")[1])
    assert f"a.tar: {shown['tars']}" in planned
    assert f"a.json: {shown['arrays']}" in planned

    code, run, _ = koe("run", *arguments, "--to", "ingest")
    assert code == 0
    stats, contract = koe("stats", *arguments)[1], koe("stats", *arguments, "--json")[1]
    koe("stats", *arguments, "--html", str(tmp_path / "page"))
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    sources = json.loads(contract)["sources"]
    for name, row in rows.items():
        assert sources[name]["lost_records"] == row["lost_records"]
        assert sources[name]["lost_bytes"] == row["lost_bytes"]
        for text in (run, stats, page):
            assert f"{name}: {shown[name]}" in _words(text)
    assert sources["tars"]["closed"]
    kept = sources["tars"]["clips_in"] - 1  # a record stands for the hole
    assert kept + rows["tars"]["lost_records"] in range(29, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "code"), [(0.2, 1), (0.5, 0)])
def test_lost_records_count_as_quarantined(tmp_path, share, code):
    """One record stands for each hole: 1 of 21 clips by their number alone."""
    config, _ = _with_holes(tmp_path)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["max_quarantine_share"] = share
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    found, out, err = koe("run", "-c", str(config), "--to", "ingest")
    assert found == code, out + err
    if code:
        assert "records are quarantined, more than max_quarantine_share 0.2 allows" in _words(err)
        assert "more in unreadable_bytes" in _words(err)
