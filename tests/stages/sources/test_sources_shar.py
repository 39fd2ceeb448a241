"""Lhotse's Shar sets and manifests of cuts, written by lhotse and compared with its own reader."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import warnings
from functools import partial

import pytest
from lhotse import CutSet, Fbank, fastcopy
from lhotse.features.io import NumpyFilesWriter

from tests.stages.sources.lhotse_sets import (
    dialogues,
    read_shar,
    recording,
    supervision,
    two_channels,
    write_shar,
)
from tests.stages.sources.reading import ingested
from tests.stages.sources.shar_source import assert_as_lhotse_reads, source_of


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
