"""Lhotse's Shar sets and manifests of cuts, written by lhotse and compared with its own reader."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import warnings
from functools import partial

import numpy as np
import pytest
from lhotse import CutSet, Fbank, RecordingSet, SupervisionSet, fastcopy
from lhotse.features.io import NumpyFilesWriter
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.sources.lhotse_sets import (
    clips_of,
    dialogues,
    read_shar,
    recording,
    supervision,
    two_channels,
    write_shar,
)
from tests.stages.sources.reading import ingested, waves


def source_of(*paths, unit_records=3, **settings):
    values = {"name": "s", "kind": "shar", "paths": [str(path) for path in paths], **settings}
    return speech_source(SpeechSourceConfig(**values), unit_records)


def assert_as_lhotse_reads(source, cuts, tolerance=0.0):
    kept, reasons = ingested(source)
    expected = clips_of(cuts)
    assert not reasons
    assert kept.keys() == expected.keys()
    audio = waves(source)
    for clip_id, (text, speaker, wave) in expected.items():
        assert (kept[clip_id]["text"], kept[clip_id]["speaker"]) == (text, speaker)
        assert kept[clip_id]["seconds"] == len(wave) / kept[clip_id]["audio_hz"]
        np.testing.assert_allclose(audio[clip_id], wave, rtol=0, atol=tolerance)


# Opus decodes at 48 kHz, whatever rate the manifest states.
@pytest.mark.parametrize(
    ("audio", "tolerance"), [("flac", 0), ("wav", 0), ("mp3", 1e-3), ("opus", 1e-3)]
)
@pytest.mark.parametrize("unit_records", [1, 3, 100])
def test_shar_gives_the_clips_texts_and_samples_that_lhotse_reads(
    tmp_path, audio, tolerance, unit_records
):
    write_shar(dialogues(tmp_path), tmp_path / "shar", audio)
    paths = tmp_path / "shar" / "cuts.*.jsonl.gz"
    source = source_of(paths, unit_records=unit_records, fields={"speaker": "speaker"})
    assert_as_lhotse_reads(source, read_shar(tmp_path / "shar"), tolerance)


def test_a_manifest_of_cuts_reads_its_files_from_where_the_cut_begins(tmp_path):
    cuts = dialogues(tmp_path)
    for name in ("train.jsonl", "train.jsonl.gz"):
        cuts.to_file(tmp_path / name)
        source = source_of(tmp_path / name, fields={"speaker": "speaker"})
        assert_as_lhotse_reads(source, cuts)


def test_a_clip_is_the_channel_of_its_supervision(tmp_path):
    cuts = two_channels(tmp_path)
    write_shar(cuts, tmp_path / "shar")
    cuts.to_file(tmp_path / "cuts.jsonl")
    for path in ("shar/cuts.000000.jsonl.gz", "cuts.jsonl"):
        source = source_of(tmp_path / path, fields={"speaker": "speaker"})
        # lhotse keeps both channels of a clip on both; the mean of 16-bit samples is rounded
        assert_as_lhotse_reads(source, cuts, tolerance=1e-7)
        kept, _ = ingested(source)
        assert [row["channel"] for row in kept.values()] == [0, 1, None]


def test_fields_descend_into_what_supervision_and_cut_carry(tmp_path):
    write_shar(dialogues(tmp_path, 1), tmp_path / "shar")
    fields = {"text": "custom.written.text", "ovrl": "cut.custom.snr", "id": "id_in_cut"}
    source = source_of(
        tmp_path / "shar/cuts.000000.jsonl.gz", fields={**fields, "speaker": "speaker_in_cut"}
    )
    kept, reasons = ingested(source)
    cut_id = "podcast/対話.0"
    (row,) = kept.values()
    assert row["id"] == f"s/{cut_id}/{cut_id}-0"
    assert (row["text"], row["speaker"], row["source_ovrl"]) == ("書き0", f"{cut_id}/S0", 0.0)
    assert reasons.keys() == {f"{cut_id}/{cut_id}-1"}


def test_units_start_at_cuts_and_records_do_not_depend_on_their_size(tmp_path):
    write_shar(dialogues(tmp_path), tmp_path / "shar", shard_size=4)
    paths = tmp_path / "shar" / "cuts.*.jsonl.gz"
    sources = [source_of(paths, unit_records=number) for number in (1, 2, 5, 100)]
    read = [[record for unit in s.units() for record in s.read(unit)] for s in sources]
    assert all(records == read[0] for records in read)
    assert [unit.records for unit in sources[0].units()] == [2] * 5
    assert [unit.records for unit in sources[2].units()] == [4, 4, 2]
    again = pickle.loads(pickle.dumps(sources[0]))
    assert [record for unit in again.units() for record in again.read(unit)] == read[0]


def test_a_supervision_that_crosses_the_border_of_its_cut_is_no_clip(tmp_path):
    source = recording(tmp_path, 1)
    parts = [
        supervision("c", 0, -0.5, 1.0),
        supervision("c", 1, 2.5, 1.0),
        supervision("c", 2, 3.5, 0.5),
        supervision("c", 3, -0.05, 0.5),  # within the tolerance, cut off at the border
        supervision("c", 4, 1.0, 1.0, text=None),
        supervision("c", 5, 2.0, 1.05),
    ]
    cut = source.to_cut().truncate(offset=0.5, duration=3.0)
    cut.supervisions = parts
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    kept, reasons = ingested(source_of(tmp_path / "cuts.jsonl"))
    assert {key: reason for key, (reason, _) in reasons.items()} == {
        "c-0": "bad_segment",
        "c-1": "bad_segment",
        "c-2": "bad_segment",
        "c-4": "missing_transcript",
    }
    assert "-0.500 s to 0.500 s of a cut of 3.000 s" in reasons["c-0"][1]
    ranges = {key: (row["start_seconds"], row["seconds"]) for key, row in kept.items()}
    assert ranges == {"c-3": (0.5, 0.45), "c-5": (2.5, 1.0)}


def rewrite(path, change):
    """Change the members of a tar, given as (name, bytes), and write it as it was."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    path.unlink()
    with tarfile.open(path, "w") as tar:
        for info, data in change(members):
            tar.addfile(info, io.BytesIO(data))


def test_audio_that_is_not_in_the_tar_is_named(tmp_path):
    write_shar(dialogues(tmp_path), tmp_path / "shar")
    folder = tmp_path / "shar"
    rewrite(folder / "recording.000000.tar", lambda members: members[2:])
    (folder / "recording.000001.tar").unlink()
    rewrite(folder / "recording.000002.tar", lambda members: [*members, *members])
    kept, reasons = ingested(source_of(folder / "cuts.*.jsonl.gz"))
    assert set(kept) == {"podcast/対話.1-0", "podcast/対話.1-1"}
    first, second, last = (reasons[f"podcast/対話.{number}-1"] for number in (0, 2, 4))
    assert first[0] == "missing_audio"
    assert "no member for 'podcast/対話.0'" in first[1]
    assert second[0] == "missing_audio"
    assert second[1].endswith("recording.000001.tar")
    assert last[0] == "ambiguous_audio"


def test_a_tar_that_arrives_later_is_read_by_the_next_run(tmp_path):
    write_shar(dialogues(tmp_path, 1), tmp_path / "shar")
    tar = tmp_path / "shar/recording.000000.tar"
    kept = tar.rename(tmp_path / "kept.tar")
    source = source_of(tmp_path / "shar/cuts.000000.jsonl.gz")
    (before,) = source.units()
    assert not ingested(source)[0]
    kept.rename(tar)
    (after,) = source.units()
    assert before.stamp != after.stamp
    assert len(ingested(source)[0]) == 2


def test_a_cut_without_audio_or_supervisions_is_a_record(tmp_path):
    first, second = dialogues(tmp_path, 2)
    first = fastcopy(first, recording=None)
    second.supervisions = []
    write_shar(CutSet.from_cuts([first, second]), tmp_path / "shar")
    kept, reasons = ingested(source_of(tmp_path / "shar/cuts.000000.jsonl.gz"))
    assert not kept
    assert {key: reason for key, (reason, _) in reasons.items()} == {
        f"{first.id}-0": "missing_audio",
        f"{first.id}-1": "missing_audio",
        second.id: "missing_transcript",
    }


def test_cuts_whose_recording_stands_only_in_the_tar(tmp_path):
    cuts = two_channels(tmp_path)
    write_shar(cuts, tmp_path / "shar")
    (cut,) = cuts
    bare = CutSet.from_cuts([fastcopy(cut, recording=None)])
    bare.to_file(tmp_path / "shar/cuts.000000.jsonl.gz")
    source = source_of(tmp_path / "shar/cuts.000000.jsonl.gz", fields={"speaker": "speaker"})
    kept, reasons = ingested(source)
    assert [row["channel"] for row in kept.values()] == [0, 1, None]
    assert not reasons


def with_another_recording(folder, num_cuts=3):
    """Make cuts with features and a second recording, whose samples are others."""
    cuts = []
    with warnings.catch_warnings(), NumpyFilesWriter(folder / "features") as storage:
        warnings.simplefilter("ignore", DeprecationWarning)  # lhotse's filters, by NumPy
        for number, cut in enumerate(dialogues(folder, num_cuts)):
            own = cut.compute_and_store_features(Fbank(), storage)
            own.target_recording = recording(folder, 50 + number)
            cuts.append(own)
    return CutSet.from_cuts(cuts)


def test_features_and_other_recordings_of_a_cut(tmp_path):
    cuts = with_another_recording(tmp_path)
    folder = tmp_path / "shar"
    folder.mkdir()
    written = {"recording": "flac", "features": "numpy", "target_recording": "wav"}
    cuts.to_shar(folder, fields=written, shard_size=2)
    assert_as_lhotse_reads(
        source_of(folder / "cuts.*.jsonl.gz", fields={"speaker": "speaker"}), read_shar(folder)
    )
    asked = source_of(
        folder / "cuts.*.jsonl.gz", fields={"speaker": "speaker", "audio": "target_recording"}
    )
    others = CutSet.from_cuts(
        fastcopy(cut, recording=cut.target_recording, custom={}) for cut in read_shar(folder)
    )
    assert_as_lhotse_reads(asked, others)


def test_cuts_with_features_alone_have_no_audio(tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    cuts = with_another_recording(tmp_path).map(partial(fastcopy, recording=None, custom=None))
    cuts.to_shar(folder, fields={"features": "numpy"}, shard_size=2)
    kept, left = ingested(source_of(folder / "cuts.*.jsonl.gz"))
    assert not kept
    assert len(left) == 6
    assert {reason for reason, _ in left.values()} == {"missing_audio"}
    assert all("recording.00000" in detail for _, detail in left.values())


def test_what_lhotse_could_not_load_is_not_in_its_set(tmp_path):
    cuts = dialogues(tmp_path)
    (tmp_path / "2.wav").unlink()
    folder = tmp_path / "shar"
    folder.mkdir()
    cuts.to_shar(folder, fields={"recording": "flac"}, shard_size=2, fault_tolerant=True)
    kept, left = ingested(source_of(folder / "cuts.*.jsonl.gz"))
    assert not left
    assert {key.partition("-")[0] for key in kept} == {f"podcast/対話.{n}" for n in (0, 1, 3, 4)}


@pytest.mark.parametrize("unit_records", [1, 3, 100])
def test_audio_that_no_cut_names_is_counted(tmp_path, unit_records):
    write_shar(dialogues(tmp_path), tmp_path / "shar")
    folder = tmp_path / "shar"
    path = folder / "cuts.000000.jsonl.gz"
    first, _ = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(first))
    source = source_of(folder / "cuts.*.jsonl.gz", unit_records=unit_records)
    kept, left = ingested(source)
    assert len(kept) == 8
    assert {key: reason for key, (reason, _) in left.items()} == {
        "recording.000000.tar/podcast/対話.1.flac": "not_in_manifest"
    }
    ignoring = source_of(folder / "cuts.*.jsonl.gz", unlisted_audio="ignore")
    assert ingested(ignoring) == (kept, {})


def test_a_file_of_cuts_that_breaks_off_costs_what_follows(tmp_path):
    cuts = dialogues(tmp_path, 40)
    write_shar(cuts, tmp_path / "shar", shard_size=40)
    path = tmp_path / "shar/cuts.000000.jsonl.gz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = source_of(path, unit_records=7)
    kept, left = ingested(source)
    assert 0 < len(kept) < 80
    # the line that is cut, and the rest of the stream, whose audio is not counted a second time
    assert sorted(reason for reason, _ in left.values()) == ["broken_json", "unreadable_bytes"]
    assert sum(unit.lost_bytes for unit in source.units()) >= 1
    assert 0.5 < (len(kept) + sum(unit.lost_records for unit in source.units())) / 80 < 1.5


def test_what_is_made_while_it_is_read_is_refused_by_name(tmp_path):
    (cut,) = dialogues(tmp_path, 1)
    mixed = cut.mix(cut, offset_other_by=0.5).with_id("mixed")
    faster = cut.perturb_speed(1.1).with_id("faster")
    CutSet.from_cuts([mixed, faster]).to_file(tmp_path / "cuts.jsonl")
    kept, reasons = ingested(source_of(tmp_path / "cuts.jsonl"))
    assert not kept
    assert reasons["mixed"][0] == "unsupported_cut"
    assert "MixedCut" in reasons["mixed"][1]
    others = [reason for key, reason in reasons.items() if key != "mixed"]
    assert {reason for reason, _ in others} == {"unsupported_recording"}
    assert "Speed" in others[0][1]


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


def prepared(folder, suffix=".jsonl.gz"):
    """Write recordings and supervisions as `lhotse prepare` does; what lhotse makes of them."""
    folder.mkdir(parents=True)
    sets = {}
    for part, numbers in (("train", range(3)), ("dev", range(3, 5))):
        recordings = RecordingSet.from_recordings(recording(folder, number) for number in numbers)
        supervisions = SupervisionSet.from_segments(
            fastcopy(supervision(f"u{number}", place, 0.3 + place, 0.8), recording_id=f"r{number}")
            for number in numbers
            for place in range(2)
        )
        recordings.to_file(folder / f"tv_recordings_{part}{suffix}")
        supervisions.to_file(folder / f"tv_supervisions_{part}{suffix}")
        sets[part] = CutSet.from_manifests(recordings, supervisions)
    return sets["train"] + sets["dev"]


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
