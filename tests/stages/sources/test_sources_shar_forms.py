"""The other forms of Lhotse's sets: lists of shards, J-CHAT's supervisions, supervisions beside recordings."""

from __future__ import annotations

import gzip
import json

import pytest
from lhotse import CutSet
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.settings import SpeechSourceConfig
from tests.stages.sources.lhotse_sets import (
    dialogues,
    recording,
    supervision,
    two_channels,
    write_shar,
)
from tests.stages.sources.reading import ingested
from tests.stages.sources.shar_source import assert_as_lhotse_reads, prepared, source_of


def test_tars_of_another_name_and_in_another_folder(tmp_path):
    write_shar(dialogues(tmp_path), tmp_path / "shar")
    (tmp_path / "audio").mkdir()
    for path in (tmp_path / "shar").glob("recording.*.tar"):
        path.rename(tmp_path / "audio" / path.name.replace("recording", "clean"))
    paths = tmp_path / "shar/cuts.*.jsonl.gz"
    for cuts in (tmp_path / "shar").glob("cuts.*"):
        text = gzip.decompress(cuts.read_bytes()).decode()
        with gzip.open(cuts, "wt", encoding="utf-8") as file:
            for line in text.splitlines():
                cut = json.loads(line)
                cut["custom"]["clean"] = cut.pop("recording")
                file.write(json.dumps(cut) + "\n")
    source = source_of(paths, audio_root=str(tmp_path / "audio"), fields={"audio": "clean"})
    kept, reasons = ingested(source)
    assert len(kept) == 10
    assert not reasons


def listing(path, cuts, tars):
    path.write_text(json.dumps({"cuts": cuts, "recording": tars, "features": []}))
    return path


def test_a_file_may_list_the_shards(tmp_path):
    cuts = dialogues(tmp_path)
    for part in ("a", "b"):
        write_shar(cuts if part == "a" else two_channels(tmp_path), tmp_path / part)
    names = [f"000{number:03d}" for number in range(3)]
    first = listing(
        tmp_path / "podcast.json",
        [f"a/cuts.{name}.jsonl.gz" for name in names],
        [f"a/recording.{name}.tar" for name in names],
    )
    second = listing(
        tmp_path / "youtube.json", ["b/cuts.000000.jsonl.gz"], ["b/recording.000000.tar"]
    )
    source = source_of(first, second, unit_records=2, fields={"speaker": "speaker"})
    kept, reasons = ingested(source)
    assert len(kept) == 13
    assert not reasons
    fewer = listing(tmp_path / "fewer.json", ["a", "b"], ["c"])
    broken = listing(tmp_path / "broken.json", "a", [])
    for path in (fewer, broken):
        with pytest.raises(ConfigError, match="cannot take its shards"):
            list(source_of(path).units())


def jchat(tmp_path):
    """Write a dialogue of speakers' segments without text, and pieces of text without a speaker."""
    source = recording(tmp_path, 1)
    segments = [(0.0, 1.03, "SPEAKER_01"), (1.74, 1.2, "SPEAKER_00"), (2.95, 0.04, "SPEAKER_01")]
    pieces = [
        (0.22, 0.4, "違う"),
        (0.7, 0.4, "んですよ。"),
        (1.8, 0.5, "なんだ。"),
        (3.4, 0.2, "え"),
    ]
    parts = [
        supervision("s", number, start, seconds, text=None, speaker=speaker)
        for number, (start, seconds, speaker) in enumerate(segments)
    ] + [
        supervision("t", number, start, seconds, text=text, speaker=None)
        for number, (start, seconds, text) in enumerate(pieces)
    ]
    cut = source.to_cut().with_id("d-1")
    cut.supervisions = parts
    write_shar(CutSet.from_cuts([cut]), tmp_path / "shar")
    return tmp_path / "shar/cuts.000000.jsonl.gz"


def test_pieces_of_text_go_to_the_speaker_whose_segment_holds_their_middle(tmp_path):
    source = source_of(
        jchat(tmp_path), supervisions="speakers_and_text", fields={"speaker": "speaker_in_cut"}
    )
    kept, reasons = ingested(source)
    assert {key: (row["text"], row["speaker"], row["seconds"]) for key, row in kept.items()} == {
        "s-0": ("違うんですよ。", "d-1/SPEAKER_01", 1.03),
        "s-1": ("なんだ。", "d-1/SPEAKER_00", 1.2),
    }
    assert {key: reason for key, (reason, _) in reasons.items()} == {
        "s-2": "missing_transcript",
        "t-3": "missing_speaker",
    }


def test_without_that_rule_each_supervision_stands_for_itself(tmp_path):
    kept, reasons = ingested(source_of(jchat(tmp_path)))
    assert [row["text"] for row in kept.values()] == ["違う", "んですよ。", "なんだ。", "え"]
    assert {reason for reason, _ in reasons.values()} == {"missing_transcript"}


def test_broken_lines_are_one_record_each(tmp_path):
    write_shar(dialogues(tmp_path, 2), tmp_path / "shar")
    path = tmp_path / "shar/cuts.000000.jsonl.gz"
    good = gzip.decompress(path.read_bytes()).decode().splitlines()
    bad = [
        '{"id": ',
        "[1]",
        '{"id": "x", "supervisions": {"a": 1}}',
        '{"id": "y", "supervisions": [3]}',
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join([good[0], *bad, good[1]]))
    kept, reasons = ingested(source_of(path))
    assert len(kept) == 4
    assert [reason for reason, _ in reasons.values()] == ["broken_json"] * 4


@pytest.mark.parametrize("unit_records", [1, 3, 100])
@pytest.mark.parametrize("glob", ["*_supervisions_*.jsonl.gz", "*.jsonl.gz"])
def test_supervisions_are_read_with_the_recordings_beside_them(tmp_path, unit_records, glob):
    cuts = prepared(tmp_path / "data")
    source = source_of(
        tmp_path / "data" / glob, unit_records=unit_records, fields={"speaker": "speaker"}
    )
    assert_as_lhotse_reads(source, CutSet.from_cuts(cuts))


def test_supervisions_and_recordings_that_do_not_fit(tmp_path):
    prepared(tmp_path / "data", ".jsonl")
    folder = tmp_path / "data"
    (folder / "tv_recordings_dev.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"there is no \S*tv_recordings_dev\.jsonl.*beside"):
        list(source_of(folder / "tv_supervisions_*.jsonl").units())
    path = folder / "tv_recordings_train.jsonl"
    first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([first, second[:40], third, first]))
    lines_of_text = (folder / "tv_supervisions_train.jsonl").read_text().splitlines()
    long = json.loads(lines_of_text[0]) | {"id": "long", "duration": 7.5}
    (folder / "tv_supervisions_train.jsonl").write_text(
        "\n".join([*lines_of_text, json.dumps(long), '{"id": 3'])
    )
    kept, left = ingested(source_of(folder / "tv_supervisions_train.jsonl"))
    assert set(kept) == {"u0-0", "u0-1", "u2-0", "u2-1"}
    assert {key: reason for key, (reason, _) in left.items() if key.startswith(("u", "l"))} == {
        "u1-0": "missing_audio",
        "u1-1": "missing_audio",
        "long": "bad_segment",
    }
    assert [reason for key, (reason, _) in left.items() if key.startswith("tv")] == ["broken_json"]


def test_keys_that_the_format_fixes_are_refused():
    for fields in ({"start_seconds": "start"}, {"channel": "channel"}, {"end_seconds": "end"}):
        with pytest.raises(ValidationError, match="no meaning for kind shar"):
            SpeechSourceConfig(name="s", kind="shar", paths=["x"], fields=fields)
    with pytest.raises(ValidationError, match="for kind shar"):
        SpeechSourceConfig(name="s", kind="manifest", paths=["x"], supervisions="speakers_and_text")


def test_tars_among_the_cuts_are_refused(tmp_path):
    write_shar(dialogues(tmp_path), tmp_path / "shar", "flac")
    with pytest.raises(
        ConfigError, match=r"cannot read cuts from .*recording.*Name the files of cuts"
    ):
        list(source_of(tmp_path / "shar" / "*").units())
