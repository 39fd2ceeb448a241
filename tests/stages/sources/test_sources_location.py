"""Clips by the places where they lie, and places that lead nowhere."""

from __future__ import annotations

import pytest

from koe.errors import BadRecord, StorageError
from stages.sources.location import AudioLocation, ClipReader
from tests.stages.audio_files import clip, sample, write_tar

WAV = clip(0.1, kind="wav")


def test_clips_of_tars_and_files(tmp_path):
    members = [member for n in range(3) for member in sample(str(n))]
    infos = write_tar(tmp_path / "a.tar", members)
    (tmp_path / "1.wav").write_bytes(WAV)
    places = [
        AudioLocation("tar", str(tmp_path / "a.tar"), info.name, info.offset_data, info.size)
        for info in infos[1::2]
    ]
    with ClipReader() as reader:
        assert [reader.read(place) for place in places] == [data for _, data in members[1::2]]
        assert reader.read(AudioLocation("file", str(tmp_path / "1.wav"), "", 0, 0)) == WAV
        assert reader.header(places[0])[0].format == "FLAC"
        assert reader.header(AudioLocation("file", str(tmp_path / "1.wav"), "", 0, 0))[1] == len(
            WAV
        )


@pytest.mark.parametrize("name", ["gone.wav", "folder", "file/below.wav", "x" * 300, "nul\0.wav"])
def test_a_name_that_leads_nowhere_is_missing_audio(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    place = AudioLocation("file", f"{tmp_path}/{name}", "", 0, 0)
    with ClipReader() as reader:
        with pytest.raises(BadRecord, match="missing_audio"):
            reader.read(place)
        with pytest.raises(BadRecord, match="missing_audio"):
            reader.header(place)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), TimeoutError(), OSError(5, "I/O")]
)
@pytest.mark.parametrize("kind", ["file", "tar"])
def test_a_failing_storage_is_no_missing_audio(tmp_path, monkeypatch, error, kind):
    def fail(_):
        raise error

    monkeypatch.setattr("stages.sources.location.open_binary", fail)
    place = AudioLocation(kind, str(tmp_path / "a"), "", 0, 10)
    with ClipReader() as reader:
        with pytest.raises(StorageError, match="cannot be read"):
            reader.read(place)
        with pytest.raises(StorageError, match="cannot be read"):
            reader.header(place)


def test_a_lost_archive_is_a_storage_error(tmp_path):
    for kind in ("tar", "parquet"):
        with pytest.raises(StorageError), ClipReader() as reader:
            reader.read(AudioLocation(kind, str(tmp_path / "gone"), "audio", 0, 10))


def test_a_shrunken_archive_is_a_storage_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(StorageError, match="shorter"), ClipReader() as reader:
        reader.read(AudioLocation("tar", str(tmp_path / "a.tar"), "x", 0, 10))
