"""Many clips of one recording: it is walked once, read in parts, and held within bounds."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from koe.errors import BadRecord, StorageError
from koe.remote import file_system
from koe.schema import unit_table
from stages.audio import containers
from stages.audio.contents import BlockCache, Blocks
from stages.audio.decode import decode, read_header
from stages.audio.recording import Recording
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources import location
from stages.sources.location import AudioLocation, ClipReader, recordings
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.fuzz.readers import READERS
from tests.stages.audio_files import clip, encoded, tone, write_lines, write_tar

HZ, SECONDS = 16_000, 6.0
SEGMENTS = [(start / 2, 1.0) for start in range(10)]
EXTENSIONS = ("wav", "flac", "mp3", "opus", "ogg")


def segments_of(tmp_path: Path, audio: dict[str, str]) -> pa.Table:
    """Ingest segments of files, whose paths are given by name, in an order that mixes the files."""
    records = [
        {"id": f"{name} {start}", "path": path, "at": start, "for": seconds, "text": "文"}
        for name, path in audio.items()
        for start, seconds in SEGMENTS
    ]
    random.Random(0).shuffle(records)
    manifest = write_lines(tmp_path / "m.jsonl", records)
    config = SpeechSourceConfig.model_validate(
        {
            "name": "s",
            "kind": "manifest",
            "paths": [str(manifest)],
            "audio_root": next(iter(audio.values())).rpartition("/")[0],
            "fields": {"id": "id", "audio": "path", "start_seconds": "at", "seconds": "for"},
        }
    )
    source = speech_source(config, 1_000)
    outcome = IngestStage((source,)).open()(unit_table(list(source.units())))
    assert outcome.quarantined.num_rows == 0
    return outcome.kept


def check_clips(clips: pa.Table, data: dict[str, bytes]) -> None:
    whole = {name: decode(audio) for name, audio in data.items()}
    for row, audio in zip(clips.to_pylist(), load_clips(clips, HZ, 2), strict=True):
        name = row["id"].removeprefix("s/").split()[0]
        samples, audio_hz = whole[name]
        assert audio_hz == HZ
        start = round(row["start_seconds"] * HZ)
        assert np.array_equal(audio, samples[start : start + HZ]), name


@pytest.fixture
def written(tmp_path) -> dict[str, bytes]:
    noise = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * HZ)).astype(np.float32)
    data = {kind: encoded(noise, HZ, kind) for kind in EXTENSIONS}
    for kind, audio in data.items():
        (tmp_path / kind).write_bytes(audio)
    return data


@pytest.fixture
def scans(monkeypatch) -> list[int]:
    """Collect the size of every file that is walked."""
    found: list[int] = []

    def counted(file, num_bytes):
        found.append(num_bytes)
        return containers.scan(file, num_bytes)

    for module in ("decode", "recording"):
        monkeypatch.setattr(f"stages.audio.{module}.scan", counted)
    return found


def test_a_file_is_walked_once_for_all_its_segments(tmp_path, written, scans):
    clips = segments_of(tmp_path, {kind: str(tmp_path / kind) for kind in written})
    assert clips.num_rows == len(written) * len(SEGMENTS)
    sizes = sorted(len(data) for data in written.values())
    assert sorted(scans) == sizes
    scans.clear()
    list(load_clips(clips, HZ))
    assert sorted(scans) == sizes
    check_clips(clips, written)


def test_a_bad_file_is_walked_once_and_all_its_segments_are_quarantined(tmp_path, scans):
    (tmp_path / "cut.opus").write_bytes(clip(2.0, HZ, "opus")[:-100])
    place = AudioLocation("file", str(tmp_path / "cut.opus"))
    with ClipReader() as reader:
        for _ in range(3):
            with pytest.raises(BadRecord, match="truncated_audio"):
                reader.header(place)
        recording = reader.recording(place, keep=True)
    for _ in range(3):
        with pytest.raises(BadRecord, match="truncated_audio"):
            decode(recording, 0.1, 0.1)
    assert len(scans) == 2


@pytest.mark.parametrize("root", ["{}", "memory://{}"])
def test_large_files_are_read_in_blocks(tmp_path, written, monkeypatch, root):
    """On object storage too; the whole of a file is never read at once."""
    monkeypatch.setattr(location, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(location, "BLOCK_BYTES", 4_096)
    monkeypatch.setattr(location, "_REMOTE_BLOCK_BYTES", 4_096)
    folder = root.format(tmp_path)
    for kind, audio in written.items():
        fs, place = file_system(f"{folder}/{kind}")
        fs.pipe_file(place, audio)
    largest = 0
    read_range = location.read_range

    def measured(path, start, stop):
        nonlocal largest
        largest = max(largest, stop - start)
        return read_range(path, start, stop)

    monkeypatch.setattr(location, "read_range", measured)
    check_clips(segments_of(tmp_path, {kind: f"{folder}/{kind}" for kind in written}), written)
    assert largest == 4_096


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_recordings_in_tars_are_read_in_blocks(tmp_path, written, monkeypatch, name):
    monkeypatch.setattr(location, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(location, "BLOCK_BYTES", 4_096)
    infos = write_tar(tmp_path / "a.tar", list(written.items()))
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    places = [
        AudioLocation("tar", str(tmp_path / name), info.name, info.offset_data, info.size)
        for info in infos
    ]
    with ClipReader(str(tmp_path / "index")) as reader:
        for info, place in zip(infos, places, strict=True):
            recording = reader.recording(place)
            assert isinstance(recording.contents, Blocks)
            whole, _ = decode(written[info.name])
            part = recording.read(40_000, 1_000)[:, 0]
            assert np.array_equal(part, whole[40_000:41_000]), info.name


def test_a_recording_is_kept_until_its_last_clip(tmp_path):
    (tmp_path / "a.flac").write_bytes(clip(1.0, HZ))
    (tmp_path / "b.flac").write_bytes(clip(1.0, HZ))
    paths = [str(tmp_path / f"{name}.flac") for name in "abacb"]
    table = pa.table(
        {
            "audio_kind": ["file"] * 5,
            "audio_path": paths,
            "audio_member": [""] * 5,
            "audio_offset": [0] * 5,
            "audio_bytes": [0] * 5,
        }
    )
    first, second, third, missing, fifth = recordings(table)
    assert first is third
    assert second is fifth
    assert isinstance(missing, BadRecord)


def test_recordings_beyond_the_memory_for_them_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(location, "CACHED_BYTES", 100_000)
    places = []
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(encoded(tone(1.0, HZ), HZ))  # 32,044 bytes
        places.append(AudioLocation("file", str(path)))
    with ClipReader() as reader:
        kept = [reader.recording(place, keep=True) for place in places]
        assert reader.recording(places[-1], keep=True) is kept[-1]
        assert reader.recording(places[-3], keep=True) is kept[-3]
        assert reader.recording(places[0], keep=True) is not kept[0]


def test_a_file_that_shrinks_meanwhile_is_a_storage_error(tmp_path, monkeypatch):
    """libsndfile swallows the errors of what it reads; this one must come out, and no bad clip."""
    monkeypatch.setattr(location, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(location, "BLOCK_BYTES", 4_096)
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(SECONDS, HZ), HZ))
    with ClipReader() as reader:
        recording = reader.recording(AudioLocation("file", str(path)))
        assert recording.header.seconds == SECONDS
        path.write_bytes(path.read_bytes()[:100_000])
        assert len(decode(recording, 0.5, 1.0)[0]) == HZ
        with pytest.raises(StorageError, match="shorter than it was"):
            decode(recording, 4.5, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "hours"), [("wav", 10), ("mp3", 2)])
def test_hours_take_little_memory(tmp_path, monkeypatch, kind, hours):
    """A WAV file of 1.2 GB, of which most is a hole, and an MP3 file of 120 files of a minute.

    The MP3 file has 22 MB: less is held, with what a walk finds, besides the blocks that are kept.
    """
    monkeypatch.setattr(location, "BlockCache", lambda: BlockCache(4 << 20))
    seconds = hours * 3_600
    minute = encoded(tone(60.0, HZ), HZ, kind)
    path = tmp_path / f"long.{kind}"
    with path.open("wb") as file:
        if kind == "wav":
            size = seconds * HZ * 2
            head = minute[:44].replace(minute[40:44], size.to_bytes(4, "little"))
            file.write(head[:4] + (size + 36).to_bytes(4, "little") + head[8:])
            file.seek(44 + (seconds - 600) * HZ * 2)
            file.write(minute[44:])
            file.truncate(44 + size)
        else:
            for _ in range(60 * hours):
                file.write(minute)
    tracemalloc.start()
    with path.open("rb") as file:
        header = read_header(file)
    assert header.seconds == seconds
    with ClipReader() as reader:
        recording = reader.recording(AudioLocation("file", str(path)), keep=True)
        audio, _ = decode(recording, seconds - 599.0, 3.0)
        assert isinstance(recording, Recording)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole, _ = decode(minute, 1.0, 3.0)
    assert np.array_equal(audio, whole)
    assert peak < 16e6, f"{peak / 1e6:.0f} MB"


HOSTILE = {
    "ones behind": (b"\xff" * 8_000_000, None),
    "headers without frames": (b"\xff\xfb\x90\0" * 1_000_000, "at 65,537 places up to byte"),
    "a byte between frames": (None, "at 4,097 places"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_made_to_hang_does_not(name):
    """Each is done in a second: none is tried at every byte, nor are all places kept."""
    frame = encoded(tone(1.0, HZ), HZ, "mp3")
    behind, message = HOSTILE[name]
    if behind is None:
        whole = b"\xff\xfb\x10\xc4".ljust(104, b"\0")
        data = (2 * whole + b"!") * 5_000
    else:
        data = frame + behind
    if message is None:
        assert read_header(data).num_frames == HZ
    else:
        with pytest.raises(BadRecord, match=message):
            read_header(data)


def test_a_vorbis_stream_without_a_sample_is_refused(tmp_path):
    """Its pages are whole and the second header is not: libvorbis crashed where a clip was sought."""
    tape = bytes.fromhex("d251f4adfca78cc2100fa78cc210a70f")
    reader = READERS["vorbis"]
    data = reader.files(tape)["a.audio"]
    for start in (0.05, 0.1):
        with pytest.raises(BadRecord, match="truncated_audio"):
            decode(data, start, 0.05)
