from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import webdataset

from stages.sources.location import ClipReader
from tests.stages.audio_files import clip, sample, write_tar
from tests.stages.records import reason
from tests.stages.sources.webdataset_source import MEMBERS, gaps, read_all, source_of


def test_shards_of_webdatasets_own_writer_are_read_as_by_its_own_reader(tmp_path):
    written = {}
    with webdataset.ShardWriter(f"{tmp_path}/part-%04d.tar", maxcount=3, verbose=0) as shards:
        for number in range(8):
            kind = ("flac", "mp3", "ogg", "wav")[number % 4]
            sample = {"__key__": f"講演/{number:03d}", kind: clip(0.2, kind=kind)}
            sample |= {"txt": f"文{number}"} if number % 2 else {"json": {"text": f"文{number}"}}
            shards.write(
                {**sample, "cls": number, "x.npy": np.arange(3), "meta.json": {"text": "x"}}
            )
            written[f"講演/{number:03d}"] = sample[kind]
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        theirs = {
            sample["__key__"]: next(
                sample[kind] for kind in ("flac", "mp3", "ogg", "wav") if kind in sample
            )
            for sample in webdataset.WebDataset(urls, shardshuffle=False)
        }
    assert theirs == written
    for pattern in ("part-*.tar", "part-{0000..0002}.tar"):
        records = read_all(source_of(tmp_path / pattern, unit_records=2))
        with ClipReader() as reader:
            found = {record.key.partition("/")[2]: reader.read(record.audio) for record in records}
        assert found == written
        assert [record.fields["text"] for record in records] == [f"文{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("names", "fields", "keys"),
    [
        (["w1.0_a.wav", "w1.0_a.txt"], {}, ["w1.0_a"]),
        (["w1.0_a.json", "w1.0_a.wav", "w1.0_b.json"], {}, ["w1.0_a"]),
        (["w1.speech.wav", "w1.txt"], {}, ["w1"]),
        (["w1.speech.wav", "w1.speech.txt"], {"audio": "speech.wav", "text": "speech.txt"}, ["w1"]),
        (["w1.speech.wav", "w1.txt", "w1.speech.txt"], {}, ["w1"]),
    ],
)
def test_a_lone_clip_may_have_dots_in_its_name(tmp_path, names, fields, keys):
    data = {"wav": clip(0.2), "txt": b"x", "json": b'{"text": "x"}'}
    write_tar(tmp_path / "a.tar", [(name, data[name.rpartition(".")[2]]) for name in names])
    records = read_all(source_of(tmp_path / "a.tar", **fields))
    assert [record.key for record in records if not record.bad] == [f"a/{key}" for key in keys]


@pytest.mark.parametrize("number", [1, 2])
def test_a_sample_that_lacks_a_member_says_what_may_be_the_cause(tmp_path, number):
    audio = [("1.wav", clip(0.2)), ("1.wav.json", b'{"text": "x"}')][:number]
    write_tar(tmp_path / "a.tar", audio)
    (record,) = read_all(source_of(tmp_path / "a.tar"))
    assert reason(record) == "missing_transcript"
    cause = "sort the tar by name" if number == 1 else "begins at the first dot"
    assert cause in record.bad.detail


def test_records_say_where_their_audio_lies(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, MEMBERS)
    records = read_all(source_of(path))
    assert [record.key for record in records] == [f"a/{n:03d}" for n in range(7)]
    data = path.read_bytes()
    for record, (name, audio) in zip(records, MEMBERS[1::2], strict=True):
        assert (record.audio.kind, record.audio.path) == ("tar", str(path))
        assert record.audio.member == name
        assert data[record.audio.offset : record.audio.offset + record.audio.num_bytes] == audio
        assert record.fields["speaker"] == "S1"


@pytest.mark.parametrize("unit_records", [1, 2, 7, 100])
def test_the_size_of_units_does_not_change_the_records(tmp_path, unit_records):
    members = [*MEMBERS[:6], ("../evil.flac", b"x"), ("lone.flac", clip()), *MEMBERS[6:]]
    write_tar(tmp_path / "a.tar", members)
    records = read_all(source_of(tmp_path / "a.tar", unit_records))
    assert repr(records) == repr(read_all(source_of(tmp_path / "a.tar", 4)))
    assert len(records) == 9


def test_sources_can_be_sent_to_workers(tmp_path):
    write_tar(tmp_path / "a.tar", MEMBERS)
    source = source_of(tmp_path / "a.tar")
    assert read_all(pickle.loads(pickle.dumps(source))) == read_all(source)


def test_long_names_of_every_tar_format(tmp_path):
    name = "音声/" + "とても長い名前" * 20
    for number, style in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=style) as tar:
            for key, data in [*sample(f"{name}1"), *sample(f"{name}2")]:
                info = tarfile.TarInfo(key)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        records = read_all(source_of(path, 1))
        assert [record.key for record in records] == [f"{number}/{name}1", f"{number}/{name}2"]


def test_keys_end_at_the_first_dot_of_the_last_part(tmp_path):
    members = [
        ("d.x/1.speech.wav", clip(kind="wav")),
        ("d.x/1.meta.txt", b"-"),
        ("d.x/1.txt", b"a"),
    ]
    write_tar(tmp_path / "a.tar", members)
    (record,) = read_all(source_of(tmp_path / "a.tar"))
    assert record.key == "a/d.x/1"
    assert record.audio.member == "d.x/1.speech.wav"
    assert record.fields["text"] == "a"


def test_text_beside_json_fills_only_what_json_lacks(tmp_path):
    audio = ("1.wav", clip(kind="wav"))
    json_member = ("1.json", json.dumps({"text": "json"}).encode())
    write_tar(tmp_path / "a.tar", [audio, json_member, ("1.txt", "\ufeff文\n".encode())])
    (record,) = read_all(source_of(tmp_path / "a.tar"))
    assert record.fields == {"text": "json", "txt": "文"}


def test_the_mapped_id_names_the_record_and_its_absence_is_seen(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample("x", _id="JA_1"), *sample("y", _id=None)])
    first, second = read_all(source_of(tmp_path / "a.tar", id="_id"))
    assert first.key == "JA_1"
    assert reason(second) == "missing_id"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("1.json", b"{}")], "missing_audio"),
        ([("1.json", b"{}"), ("1.npy", b"x")], "missing_audio"),
        ([("1.json", b"{broken"), ("1.wav", b"x")], "broken_json"),
        ([("1.json", b"[1]"), ("1.wav", b"x")], "broken_json"),
        ([("1.json", b'{"text": "\\ud800"}'), ("1.wav", b"x")], "broken_json"),
        ([("1.txt", b"\xff\xfe"), ("1.wav", b"x")], "broken_text"),
        ([("1.wav", b"x"), ("1.flac", b"x")], "ambiguous_audio"),
        ([("../1.wav", b"x")], "unsafe_tar_member"),
        ([("a/../../1.wav", b"x")], "unsafe_tar_member"),
        ([("/etc/1.wav", b"x")], "unsafe_tar_member"),
    ],
)
def test_unusable_samples_have_their_reason(tmp_path, members, why):
    write_tar(tmp_path / "a.tar", [*sample("0"), *members, *sample("9")])
    records = read_all(source_of(tmp_path / "a.tar", 1))
    assert [reason(record) for record in records] == ["", why, ""]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.wav")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    (record,) = read_all(source_of(tmp_path / "a.tar"))
    assert reason(record) == "unsafe_tar_member"


def test_folders_and_hidden_members_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in [("d/._1.flac", b"mac"), *sample("./d/1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (record,) = read_all(source_of(tmp_path / "a.tar"))
    assert record.key == "a/d/1"


def test_a_repeated_sample_is_a_record_of_its_own(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample("1"), *sample("1")])
    assert [record.key for record in read_all(source_of(tmp_path / "a.tar"))] == ["a/1", "a/1"]


def test_a_tar_cut_anywhere_keeps_what_precedes(tmp_path):
    """Cut at every interesting place: the samples wholly before it survive, and a record tells."""
    path = tmp_path / "a.tar"
    infos = write_tar(path, MEMBERS)
    data = path.read_bytes()
    ends = [(info.offset_data + info.size, info.name) for info in infos]
    whole = read_all(source_of(path))
    places = {0, 1, 100, 511, 512}
    for info in infos:
        places |= {
            info.offset,
            info.offset + 200,
            info.offset_data,
            info.offset_data + info.size // 2,
        }
        places |= {info.offset_data + info.size, info.offset_data + info.size - 1}
    places.remove(0)
    for place in sorted(places):
        path.write_bytes(data[:place])
        source = source_of(path, 2)
        records = read_all(source)
        assert len(gaps(records)) == 1, place
        assert reason(records[-1]) == "unreadable_bytes"
        assert sum(unit.lost_bytes for unit in source.units()) <= place
        num_whole = sum(end <= place and name.endswith(".flac") for end, name in ends)
        assert records[:num_whole] == whole[:num_whole], place
        cut = [reason(record) for record in records[num_whole:-1]]
        assert cut in ([], ["missing_audio"]), place


def test_planning_reads_no_audio(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    write_tar(path, MEMBERS)
    size = path.stat().st_size
    num_read = 0

    class Counting(io.BytesIO):
        def read(self, *args):
            nonlocal num_read
            part = super().read(*args)
            num_read += len(part)
            return part

    data = path.read_bytes()
    monkeypatch.setattr("stages.sources.files.compressed.open_binary", lambda _: Counting(data))
    assert sum(unit.records for unit in source_of(path).units()) == 7
    assert num_read < 512 * (len(MEMBERS) + 1) + 10 * 1024 < size
