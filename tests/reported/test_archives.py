"""Tars as they were reported: keys with dots, members of other names, damage, archives joined."""

from __future__ import annotations

import pytest

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import REPORTS, WORDS
from tests.stages.audio_files import write_tar
from tests.stages.records import clips_and_bad

WORD = (WORDS / "metadata.jsonl").parent


def ingest(path, unit_records=2, **fields):
    """Ingest a tar; return the kept clips, and the quarantined records by id."""
    return clips_and_bad(unit_records, kind="webdataset", paths=[str(path)], fields=fields)


@pytest.mark.parametrize("unit_records", [1, 2, 3, 100])
def test_a_key_may_hold_dots(unit_records):
    """webdataset 237: as many clips as audio members, also where a unit begins within their run."""
    kept, quarantined = ingest(REPORTS / "B/dots2.tar", unit_records)
    assert [clip["id"] for clip in kept] == [f"s/dots2/JA.00{n}" for n in range(4)]
    assert [clip["audio_member"] for clip in kept] == [f"JA.00{n}.mp3" for n in range(4)]
    assert quarantined == {}


def test_audio_of_another_extension_is_named():
    """The extension of S_02_4000_VE1.wav.data is wav.data: no audio by itself, but it can be named."""
    kept, quarantined = ingest(REPORTS / "B/data_label.tar")
    assert kept == []
    assert quarantined.keys() == {f"s/data_label/S_02/S_02_400{n}_VE1" for n in range(3)}
    reason, detail = quarantined["s/data_label/S_02/S_02_4000_VE1"]
    assert reason == "missing_audio"
    assert "S_02_4000_VE1.wav.data, S_02/S_02_4000_VE1.wav.label" in detail
    assert "fields.audio" in detail
    kept, quarantined = ingest(REPORTS / "B/data_label.tar", audio="wav.data", text="wav.label")
    assert [clip["text"] for clip in kept] == ["1", "1", "1"]
    assert quarantined == {}


def test_a_tar_without_transcripts_names_what_it_holds():
    kept, quarantined = ingest(REPORTS / "B/nemo_0.tar")
    assert kept == []
    assert quarantined["s/nemo_0/a1"] == (
        "missing_transcript",
        "of a1.mp3 none is a .json or .txt; name its extension in fields.text; if it stands elsewhere "
        "in the tar, sort the tar by name, since the members of a sample must follow one another",
    )


def test_texts_of_every_kind():
    kept, quarantined = ingest(REPORTS / "B/txt.tar")
    assert {clip["id"]: clip["text"] for clip in kept} == {
        "s/txt/bom": "日本語", "s/txt/nan": "日", "s/txt/UP": "大文字",
    }  # fmt: skip
    assert quarantined == {
        "s/txt/sjis": ("broken_text", "sjis.txt is not valid UTF-8: invalid start byte"),
        "s/txt/u16": ("broken_text", "u16.txt is not valid UTF-8: invalid start byte"),
        "s/txt/list": ("broken_json", "expected an object, found a list"),
        "s/txt/empty": ("broken_json", "Expecting value: line 1 column 1 (char 0)"),
    }


def words(path, numbers):
    """Write a tar of clips, each a real word; return where their members lie."""
    audio = sorted(WORDS.glob("*.mp3"))
    members = []
    for number in numbers:
        members += [
            (f"{number:03d}.txt", f"語{number}".encode()),
            (f"{number:03d}.mp3", audio[number % len(audio)].read_bytes()),
        ]
    return write_tar(path, members)


@pytest.mark.parametrize("unit_records", [1, 7, 100])
def test_a_damaged_header_costs_one_clip_of_sixty(tmp_path, unit_records):
    """libarchive PR 1620: half of the archive was lost, and counted as one record."""
    infos = words(tmp_path / "a.tar", range(60))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    place = infos[60].offset  # of 030.txt
    data[place : place + 300] = b"\xa5" * 300
    (tmp_path / "a.tar").write_bytes(data)
    kept, quarantined = ingest(tmp_path / "a.tar", unit_records)
    assert [clip["text"] for clip in kept] == [f"語{n}" for n in range(60) if n != 30]
    assert [reason for reason, _ in quarantined.values()] == [
        "unreadable_bytes",
        "missing_transcript",
    ]
    _, detail = quarantined[f"s/a.tar@{place}"]
    assert detail.startswith(f"1,024 bytes from byte {place:,} on: the header at byte {place}")


@pytest.mark.parametrize("unit_records", [1, 7, 100])
def test_joined_archives_are_read_to_the_end(tmp_path, unit_records):
    """`cat a.tar b.tar`: the end mark of the first hid the second."""
    words(tmp_path / "a.tar", range(30))
    words(tmp_path / "b.tar", range(30, 60))
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(joined)
    kept, quarantined = ingest(tmp_path / "c.tar", unit_records)
    assert [clip["text"] for clip in kept] == [f"語{n}" for n in range(60)]
    assert quarantined == {}


def test_a_wrong_size_takes_no_neighbour(tmp_path):
    """The header is sound, but its member would reach over the next ones."""
    infos = words(tmp_path / "a.tar", range(6))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    place = infos[5].offset  # of 002.mp3
    data[place + 124 : place + 136] = b"%011o\0" % (infos[5].size + 20_000)
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    (tmp_path / "a.tar").write_bytes(data)
    kept, quarantined = ingest(tmp_path / "a.tar")
    assert [clip["text"] for clip in kept] == [f"語{n}" for n in range(6) if n != 2]
    assert "reaches over a header" in quarantined[f"s/a.tar@{place}"][1]


def test_lost_bytes_are_about_as_many_records(tmp_path):
    """A hole of a third of the archive, which begins and ends within members."""
    infos = words(tmp_path / "a.tar", range(60))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    first, last = infos[41].offset_data + 100, infos[81].offset_data + 100
    data[first:last] = b"\x5a" * (last - first)
    (tmp_path / "a.tar").write_bytes(data)
    config = SpeechSourceConfig(name="s", kind="webdataset", paths=[f"{tmp_path}/a.tar"])
    units = list(speech_source(config, 10).units())
    lost_bytes = sum(unit.lost_bytes for unit in units)
    assert infos[82].offset - infos[41].offset == lost_bytes  # the member where it begins too
    assert 17 <= sum(unit.lost_records for unit in units) <= 23
    kept, _ = ingest(tmp_path / "a.tar")
    texts = [clip["text"] for clip in kept]
    assert texts[:20] == [f"語{n}" for n in range(20)]
    assert texts[-19:] == [f"語{n}" for n in range(41, 60)]
