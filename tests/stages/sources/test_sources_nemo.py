"""NeMo's tarred sets, written as its converter writes them."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import zstandard
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.audio_files import write_lines
from tests.stages.sources.nemo_sets import read_manifest, write_manifest, write_tarred
from tests.stages.sources.reading import ingested, reasons, waves
from tests.stages.speech import synthetic_speech

AUDIO_HZ = 16_000


def source_of(*paths, unit_records=4, **settings):
    values = {
        "name": "s",
        "kind": "nemo_tarred",
        "paths": [str(path) for path in paths],
        **settings,
    }
    return speech_source(SpeechSourceConfig(**values), unit_records)


def recordings(folder: Path, num_files: int = 4, num_parts: int = 3) -> list[dict]:
    """Write recordings of 3 s, and describe parts of each as a NeMo manifest does."""
    entries = []
    for number in range(num_files):
        path = folder / f"tv.{number}/録音_{number}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, synthetic_speech(3 * AUDIO_HZ, AUDIO_HZ, seed=number), AUDIO_HZ)
        for part in range(num_parts):
            entries.append(
                {
                    "audio_filepath": str(path),
                    "offset": part * 0.9,
                    "duration": 0.75 + part / 100,
                    "text": f"文{number}の{part}。",
                    "speaker": f"話者{number}",
                }
            )
    return entries


def texts_of(source) -> dict[str, np.ndarray]:
    kept, left = ingested(source)
    assert not left
    found = {kept[key]["text"]: wave for key, wave in waves(source).items()}
    assert len(found) == len(kept)
    return found


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


def test_what_a_record_names_and_no_tar_holds(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path), num_shards=3)
    folder = tmp_path / "set"
    (folder / "audio_1.tar").unlink()
    tar = folder / "audio_2.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    first = folder / "sharded_manifests/manifest_0.json"
    entries = read_manifest(first)
    write_lines(
        first,
        [
            *entries,
            {**entries[0], "audio_filepath": "不在.wav"},
            {**entries[0], "audio_filepath": "", "offset": 1.0},
            {**entries[0], "offset": 2.5, "duration": 9.0},
            {**entries[0], "_skipme": "noise", "offset": 0.25},
            '{"audio_filepath": ',
        ],
    )
    source = source_of(folder / "sharded_manifests/*.json")
    kept, left = ingested(source)
    found = {}
    for key, (reason, detail) in left.items():
        found.setdefault(reason, []).append((key, detail))
    assert len(kept) == 5
    # four of the missing tar, one absent member, one without a name, three of the end that was cut
    assert {reason: len(rows) for reason, rows in found.items()} == {
        "missing_audio": 4 + 1 + 1 + 3,
        "bad_segment": 1,
        "marked_to_skip": 1,
        "broken_json": 1,
    }
    details = [detail for _, detail in found["missing_audio"]]
    assert sum("there is no tar of shard 1" in detail for detail in details) == 4
    assert sum("has no member for '不在.wav'" in detail for detail in details) == 1
    assert sum("cut" in detail or "ends" in detail for detail in details) == 3


def test_records_that_are_marked_to_be_skipped_are_counted(tmp_path):
    entries = recordings(tmp_path, num_files=1, num_parts=3)
    entries[0]["_skipme"], entries[1]["_skipme"] = True, False
    write_manifest(tmp_path / "plain.json", entries)
    plain = SpeechSourceConfig(name="p", kind="manifest", paths=[str(tmp_path / "plain.json")])
    write_tarred(tmp_path / "set", entries, num_shards=1)
    for source in (
        speech_source(plain, 10),
        source_of(tmp_path / "set/tarred_audio_manifest.json"),
    ):
        kept, left = ingested(source)
        assert len(kept) == 2
        ((reason, detail),) = left.values()
        assert (reason, detail) == ("marked_to_skip", "_skipme is True, so NeMo leaves it out")


def test_a_tar_that_arrives_later_is_read_by_the_next_run(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    tar = tmp_path / "set/audio_1.tar"
    kept = tar.rename(tmp_path / "kept.tar")
    paths = tmp_path / "set/sharded_manifests/*.json"
    before = {unit.unit: unit.stamp for unit in source_of(paths).units()}
    assert set(reasons(source_of(paths)).values()) == {"missing_audio"}
    kept.rename(tar)
    after = {unit.unit: unit.stamp for unit in source_of(paths).units()}
    changed = {unit for unit in after if after[unit] != before.get(unit)}
    assert 0 < len(changed) < len(after)
    assert len(ingested(source_of(paths))[0]) == 12


def test_shard_ids_and_names_of_manifests_that_differ(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    folder = tmp_path / "set/sharded_manifests"
    # renumbered by hand, so that the ids in the records are stale: the one that holds it counts
    (folder / "manifest_0.json").rename(folder / "kept")
    (folder / "manifest_1.json").rename(folder / "manifest_0.json")
    (folder / "kept").rename(folder / "manifest_1.json")
    assert len(texts_of(source_of(folder / "*.json", unlisted_audio="ignore"))) == 12
    for name in ("manifest_0.json", "manifest_1.json"):
        entries = read_manifest(folder / name)
        write_manifest(folder / name, [{**e, "shard_id": "eins"} for e in entries])
    found = ingested(source_of(folder / "*.json", unlisted_audio="ignore"))[1]
    assert {reason for reason, _ in found.values()} == {"missing_audio"}
    assert all("shard_id is 'eins'" in detail for _, detail in found.values())


def test_records_without_shard_id(tmp_path):
    entries = recordings(tmp_path)
    write_tarred(tmp_path / "set", entries)
    write_tarred(tmp_path / "one", entries, num_shards=1)
    for folder in (tmp_path / "set", tmp_path / "one"):
        for path in folder.rglob("*.json"):
            bare = [{k: v for k, v in e.items() if k != "shard_id"} for e in read_manifest(path)]
            write_manifest(path, bare)
    assert len(texts_of(source_of(tmp_path / "set/sharded_manifests/*.json"))) == 12
    assert len(texts_of(source_of(tmp_path / "one/tarred_audio_manifest.json"))) == 12
    left = ingested(source_of(tmp_path / "set/tarred_audio_manifest.json"))[1]
    assert sum("there is no shard_id" in detail for _, detail in left.values()) == 12


def test_a_length_without_start_counts_from_the_start_of_the_member(tmp_path):
    entries = recordings(tmp_path, num_files=2, num_parts=1)
    for entry in entries:
        del entry["offset"]
    write_tarred(tmp_path / "set", entries)
    paths = tmp_path / "set/tarred_audio_manifest.json"
    kept, _ = ingested(source_of(paths))
    assert [row["seconds"] for row in kept.values()] == [0.75, 0.75]
    whole, _ = ingested(source_of(paths, fields={"seconds": None}))
    assert [row["seconds"] for row in whole.values()] == [3.0, 3.0]


def test_what_cannot_be_told_is_refused_before_any_work(tmp_path):
    write_tarred(tmp_path / "set", recordings(tmp_path))
    write_tarred(tmp_path / "other", recordings(tmp_path / "more"))
    folder = tmp_path / "set"
    manifest = folder / "tarred_audio_manifest.json"
    tars = [str(tmp_path / name / "audio_*.tar") for name in ("set", "other")]
    with pytest.raises(ConfigError, match="two tars of shard 0"):
        list(source_of(manifest, tars=tars).units())
    with pytest.raises(ConfigError, match=r"audio_2\.tar.*nothing matches"):
        list(source_of(manifest, tars=[str(folder / "audio_{0..2}.tar")]).units())
    only = source_of(folder / "sharded_manifests/manifest_0.json", tars=tars[:1])
    with pytest.raises(ConfigError, match=r"a tar without manifest.*audio_1\.tar"):
        list(only.units())
    moved = folder / "elsewhere/manifest_0.json"
    moved.parent.mkdir()
    moved.write_bytes(manifest.read_bytes())
    with pytest.raises(ConfigError, match=r"no \S*/audio_\*\.tar.*Name them in tars"):
        list(source_of(moved).units())
    (folder / "audio_0.tar").rename(folder / "audio.tar")
    with pytest.raises(ConfigError, match="cannot tell the shard"):
        list(source_of(manifest, tars=[str(folder / "audio.tar")]).units())


def test_keys_without_meaning_are_refused():
    with pytest.raises(ValidationError, match="tars is for kind nemo_tarred"):
        SpeechSourceConfig(name="s", kind="manifest", paths=["x"], tars=["y"])
    with pytest.raises(ValidationError, match="name these in tars"):
        SpeechSourceConfig(name="s", kind="nemo_tarred", paths=["x"], audio_root="y")
    with pytest.raises(ValidationError, match="unlisted_audio is for kinds"):
        SpeechSourceConfig(name="s", kind="folder", paths=["x"], unlisted_audio="ignore")
