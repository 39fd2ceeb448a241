"""What `koe plan` and `koe run` say of transcripts that have no audio."""

from __future__ import annotations

import io
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
    what = "source r: 2 rows of"
    names = "name audio that is in none of the tars, such as 000/7.mp3, 000/8.mp3"
    for arguments in (
        ["plan", "--clips", "0"],
        ["run", "--to", "ingest"],
        ["run", "--to", "ingest"],
    ):
        command, *options = arguments
        code, out, err = koe(command, "-c", str(tmp_path / "c.yaml"), *options)
        said = " ".join((out + err).split())
        assert code == 0, said
        assert (said.count(what), said.count(names)) == (1, 1), said
    assert "missing_transcript" in koe("stats", "-c", str(tmp_path / "c.yaml"))[1]
