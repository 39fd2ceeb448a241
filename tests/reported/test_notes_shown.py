"""What records have and nobody reads is said by every command that shows a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.calling import koe
from tests.corpus import write_corpus

END = "`end` looks like the end of a segment and is not read: fields.end_seconds"
UUID = "`uuid` looks like the id and is not read: fields.id"


def _add(path: Path, **fields: object) -> int:
    """Add fields to every record of a file that is JSON; return the number of those records."""
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}")]
    longer = {line: json.dumps(json.loads(line) | fields, ensure_ascii=False) for line in whole}
    path.write_text("\n".join(longer.get(line, line) for line in lines), encoding="utf-8")
    return len(whole)


@pytest.mark.slow
def test_every_command_says_what_is_not_read(tmp_path):
    config = str(write_corpus(tmp_path))
    clips = _add(tmp_path / "manifest.jsonl", end=0.5)
    samples = _add(tmp_path / "samples.jsonl", uuid="1")

    code, _, planned = koe("plan", "-c", config, "--clips", "0")
    assert code == 0
    assert f"source clips: {END} (4 of the first records)" in planned  # one unit is read
    assert f"source text: {UUID} (15 of the first records)" in planned

    code, run, said = koe("run", "-c", config, "--to", "tokenize")
    assert (code, said.count(END)) == (0, 1)
    stats = ("stats", "-c", config)
    shown, contract = koe(*stats)[1], koe(*stats, "--json")[1]
    koe(*stats, "--html", str(tmp_path / "page"))
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    sources = json.loads(contract)["sources"]
    for source, note, number in (("clips", END, clips), ("text", UUID, samples)):
        assert sources[source]["notes"] == {note: number}
        for text in (run, shown, page):
            assert f"{source}: {note} ({number} records)" in " ".join(text.split())


def test_a_source_without_records_is_said(tmp_path):
    config = str(write_corpus(tmp_path))
    (tmp_path / "samples.jsonl").write_text("\n \n", encoding="utf-8")
    code, _, planned = koe("plan", "-c", config, "--clips", "0")
    assert code == 0
    assert "source text: none of its files holds a record" in planned
