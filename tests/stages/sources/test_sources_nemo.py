"""NeMo's tarred sets, written as its converter writes them."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.sources.nemo_sets import read_manifest, write_manifest, write_tarred
from tests.stages.sources.nemo_source import recordings, source_of, texts_of
from tests.stages.sources.reading import ingested, waves


def assert_same_clips(source, plain) -> None:
    """Both sources have the same texts, and each of them the same samples."""
    mine, theirs = texts_of(source), texts_of(plain)
    assert mine.keys() == theirs.keys()
    for text, wave in theirs.items():
        np.testing.assert_array_equal(mine[text], wave)


@pytest.mark.parametrize("unit_records", [1, 4, 100])
@pytest.mark.parametrize("slice_with_offset", [False, True])
@pytest.mark.parametrize("manifests", ["tarred_audio_manifest.json", "sharded_manifests/*.json"])
def test_clips_are_those_of_the_plain_manifest(
    tmp_path, manifests, slice_with_offset, unit_records
):
    entries = recordings(tmp_path)
    write_tarred(tmp_path / "set", entries, slice_with_offset=slice_with_offset)
    write_manifest(tmp_path / "plain.json", entries)
    plain = speech_source(
        SpeechSourceConfig(name="p", kind="manifest", paths=[str(tmp_path / "plain.json")]), 100
    )
    source = source_of(
        tmp_path / "set" / manifests, unit_records=unit_records, fields={"speaker": "speaker"}
    )
    assert_same_clips(source, plain)
    kept, _ = ingested(source)
    assert {row["speaker"] for row in kept.values()} == {f"話者{number}" for number in range(4)}
    assert all(row["audio_kind"] == "tar" for row in kept.values())


def test_the_manifest_of_all_shards_and_those_of_each_give_the_same_ids(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    both = [
        source_of(tmp_path / "set" / paths)
        for paths in ("tarred_audio_manifest.json", "sharded_manifests/*.json")
    ]
    first, second = (ingested(source)[0] for source in both)
    assert first == second
    assert len(first) == 12


def test_names_that_stand_in_several_tars_are_told_apart_by_the_shard(tmp_path):
    entries = recordings(tmp_path, num_files=1, num_parts=2)
    # each shard stores the recording under the same name
    write_tarred(tmp_path / "set", entries, num_shards=2)
    manifest = read_manifest(tmp_path / "set/tarred_audio_manifest.json")
    assert len({entry["audio_filepath"] for entry in manifest}) == 1
    assert len(texts_of(source_of(tmp_path / "set/tarred_audio_manifest.json"))) == 2


def test_a_member_in_another_format_than_its_record_says(tmp_path):
    entries = recordings(tmp_path)
    write_tarred(tmp_path / "set", entries, slice_with_offset=True, codec="flac")
    (first, *_) = read_manifest(tmp_path / "set/tarred_audio_manifest.json")
    assert first["audio_filepath"].endswith(".wav")
    kept, left = ingested(source_of(tmp_path / "set/sharded_manifests/*.json"))
    assert len(kept) == 12
    assert not left
    assert all(row["audio_member"].endswith(".flac") for row in kept.values())


@pytest.mark.parametrize("notation", ["audio_{0..1}.tar", "audio__OP_0..1_CL_.tar", "audio_*.tar"])
def test_tars_by_the_notations_of_shells_and_of_nemo(tmp_path, notation):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    (tmp_path / "tars").mkdir()
    for tar in (tmp_path / "set").glob("audio_*.tar"):
        tar.rename(tmp_path / "tars" / tar.name)
    tars = [str(tmp_path / "tars" / notation)]
    manifests = "sharded_manifests/manifest_{0..1}.json"
    kept, left = ingested(source_of(tmp_path / "set" / manifests, tars=tars))
    assert len(kept) == 12
    assert not left


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_manifests_and_tars(tmp_path, suffix):
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    entries = recordings(tmp_path)
    write_tarred(tmp_path / "set", entries)
    before = ingested(source_of(tmp_path / "set/sharded_manifests/manifest_*.json"))[0]
    wave = waves(source_of(tmp_path / "set/sharded_manifests/manifest_*.json"))
    for path in [*(tmp_path / "set").glob("*.tar"), *(tmp_path / "set").glob("*/*.json")]:
        path.with_name(path.name + suffix).write_bytes(compress(path.read_bytes()))
        path.unlink()
    source = source_of(tmp_path / f"set/sharded_manifests/manifest_*.json{suffix}")
    after, left = ingested(source)
    assert not left
    assert after.keys() == before.keys()
    for key, audio in waves(source).items():
        np.testing.assert_array_equal(audio, wave[key])


def test_buckets_are_sets_of_their_own_beside_their_tars(tmp_path):
    entries = recordings(tmp_path, num_files=4)
    write_tarred(tmp_path / "bucket1", entries[:6])
    write_tarred(tmp_path / "bucket2", entries[6:])
    kept, left = ingested(source_of(tmp_path / "bucket*/tarred_audio_manifest.json"))
    assert not left
    assert len(kept) == 12
    assert {key.split("/")[0] for key in kept} == {"bucket1", "bucket2"}


def add_members(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "a") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("unit_records", [1, 4, 100])
@pytest.mark.parametrize("manifests", ["tarred_audio_manifest.json", "sharded_manifests/*.json"])
def test_audio_that_no_record_names_is_counted(tmp_path, manifests, unit_records):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    extra = {f"fremd-{number}.wav": b"RIFF" for number in range(5)}
    # what macOS adds, and what lies beside audio under its name, are no audio without a record
    with tarfile.open(tmp_path / "set/audio_1.tar") as tar:
        named = tar.getnames()[0].removesuffix(".wav")
    add_members(tmp_path / "set/audio_1.tar", {**extra, "._x.wav": b"x", f"{named}.json": b"{}"})
    source = source_of(tmp_path / "set" / manifests, unit_records=unit_records)
    kept, left = ingested(source)
    assert len(kept) == 12
    assert {key.rpartition("/")[2]: reason for key, (reason, _) in left.items()} == dict.fromkeys(
        extra, "not_in_manifest"
    )
    ignoring = source_of(tmp_path / "set" / manifests, unlisted_audio="ignore")
    assert ingested(ignoring) == (kept, {})


def test_records_of_one_tar_in_several_manifests(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    folder = tmp_path / "set"
    manifest = read_manifest(folder / "tarred_audio_manifest.json")
    write_manifest(folder / "train.json", manifest[:5])
    write_manifest(folder / "dev.json", manifest[5:7])
    kept, left = ingested(source_of(folder / "train.json", folder / "dev.json"))
    assert len(kept) == 7
    # the recordings that neither names
    assert [reason for reason, _ in left.values()] == ["not_in_manifest"]
    assert next(iter(left)).startswith("audio_1.tar/")
