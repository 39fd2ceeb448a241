"""What `koe plan`, `koe run` and `koe stats` say of transcripts that have no audio."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.calling import koe
from tests.real_data import WORDS


@pytest.mark.slow
def test_transcripts_without_audio_are_shown(tmp_path: Path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for number, word in enumerate(sorted(WORDS.glob("*.mp3"))[:4]):
            info = tarfile.TarInfo(f"./000/{number}.mp3")
            info.size = word.stat().st_size
            tar.addfile(info, io.BytesIO(word.read_bytes()))
    rows = [f"000/{n}.mp3\t文{n}\n" for n in (1, 2, 3, 7, 8)]
    (tmp_path / "small.tsv").write_text("".join(rows), encoding="utf-8")
    source = {"name": "r", "kind": "webdataset", "paths": [f"{tmp_path}/*.tar"]}
    source |= {"transcripts": f"{tmp_path}/small.tsv", "layout": "reazonspeech"}
    config = {
        "run_dir": str(tmp_path / "run"),
        "engine": "inline",
        "max_quarantine_share": 0.5,
        "sources": {"speech": [source]},
        "snac": {"weights": "untrained", "sha256": None},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    rows = f"rows of {tmp_path}/small.tsv name audio that is in none of the tars"
    note = f"{rows}, such as 000/7.mp3, 000/8.mp3"
    path = str(tmp_path / "c.yaml")
    for command, *options in (["plan", "--clips", "0"], ["run", "--to", "ingest"]):
        code, _, said = koe(command, "-c", path, *options)
        assert code == 0, said
        assert said.count(f"source r: {note} (2 records)") == 1, said
    code, shown, _ = koe("stats", "-c", path)
    # a path that is longer than a line is broken within
    assert "".join(f"r: {note} (2 records)".split()) in "".join(shown.split())
    account = json.loads(koe("stats", "-c", path, "--json")[1])["sources"]["r"]
    assert account["notes"] == {note: 2}
    assert account["quarantined"] == {"missing_transcript": 1}
