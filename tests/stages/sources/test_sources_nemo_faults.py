"""Faults of NeMo's tarred sets: what no tar holds, no record names, or cannot be told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.audio_files import write_lines
from tests.stages.sources.nemo_sets import read_manifest, write_manifest, write_tarred
from tests.stages.sources.nemo_source import recordings, source_of, texts_of
from tests.stages.sources.reading import ingested, reasons


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
