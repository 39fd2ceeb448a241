"""The encode stage: strictly above the threshold, and for each clip the codes that it has alone."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from koe.errors import BadRecord, ContractError
from koe.schema import CLIP, SCORED
from koe.stage import THREADS_PER_GPU, Exclusions, Resources, check_outcome
from koe.vocabulary import FRAME_SAMPLES, flatten_codes
from stages.dnsmos.scorer import find_model
from stages.encode import EncodeStage, encode_files
from stages.score import ScoreStage
from stages.settings import EncodeConfig, ScoreConfig
from stages.snac.batches import padded_samples
from stages.snac.codec import Codec, CodecSpec, resolve_codec
from stages.snac.on_gpu import RowsEncoder
from stages.snac.packed import PackedEncoder
from stages.snac.pointwise import TorchPointwise
from tests.real_data import WORDS
from tests.stages.snac.exact import assert_near_ties
from tests.stages.speech import clip_row, clip_table, speech_24k, synthetic_speech

LENGTHS = (300, 2047, 2048, 2049, 9000, 4096, 1, 8193, 2000)


@pytest.fixture(scope="module")
def spec() -> CodecSpec:
    return resolve_codec("untrained")


@pytest.fixture(scope="module")
def codec(spec) -> Codec:
    return Codec.open(spec)


def _scored(clips: pa.Table, ovrl=3.0, codes=None, ovrl_error=0.0) -> pa.Table:
    """Score every clip with `ovrl`: one number, or one a clip."""
    values = np.broadcast_to(np.asarray(ovrl, np.float64), clips.num_rows)
    rows = [
        {
            **row,
            "sig": None,
            "bak": None,
            "ovrl": value,
            "windows": 1,
            "ovrl_error": ovrl_error,
            "scorer": "test",
            "codes": codes[i] if codes else None,
        }
        for i, (row, value) in enumerate(zip(clips.to_pylist(), values, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SCORED)


def _run(stage: EncodeStage, table: pa.Table):
    return check_outcome(stage, table.num_rows, stage.open()(table))


def _codes_alone(codec: Codec, path: str) -> list[int]:
    audio, audio_hz = soundfile.read(path, dtype="float32")
    assert audio_hz == 24_000
    return codec.encode([audio])[0].tolist()


@pytest.mark.parametrize("batch_seconds", [0.0, 20.0])
def test_codes_are_those_of_each_clip_alone(tmp_path, spec, codec, batch_seconds):
    clips = clip_table(tmp_path, {f"c{n}": speech_24k(n, 12_000 + n) for n in LENGTHS})
    kept = _run(
        EncodeStage(spec, EncodeConfig(batch_seconds=batch_seconds)), _scored(clips)
    ).kept.to_pylist()
    assert [row["id"] for row in kept] == clips["id"].to_pylist()
    for row, length in zip(kept, LENGTHS, strict=True):
        assert row["codes"] == _codes_alone(codec, row["audio_path"])
        assert row["frames"] == padded_samples(length) // FRAME_SAMPLES == len(row["codes"]) // 7


@pytest.mark.slow
def test_launches_of_a_gpu_keep_the_order_and_the_exclusions_of_a_unit(
    tmp_path, spec, codec, monkeypatch
):
    """The encoder for GPUs on a CPU: clips are packed, cut, and lost to their own faults alone."""

    def packed(model, *_):
        return PackedEncoder(RowsEncoder(model, TorchPointwise(), 16), torch.device("cpu"))

    monkeypatch.setattr("stages.snac.codec.open_stream", packed)
    lengths = {f"c{n}": n for n in (*LENGTHS, 33 * FRAME_SAMPLES)}
    audios = {name: speech_24k(n, 12_000 + n) for name, n in lengths.items()}
    clips = clip_table(tmp_path, audios)
    (tmp_path / "c2048.flac").write_bytes(b"")
    stage = EncodeStage(spec, EncodeConfig(batch_seconds=5))
    outcome = _run(stage, _scored(clips))
    kept = outcome.kept.to_pylist()
    assert [row["id"] for row in kept] == [name for name in lengths if name != "c2048"]
    assert outcome.quarantined["id"].to_pylist() == ["c2048"]
    for row in kept:
        codes = np.array(row["codes"])
        assert row["frames"] == padded_samples(lengths[row["id"]]) // FRAME_SAMPLES
        audio, _ = soundfile.read(row["audio_path"], dtype="float32")
        assert_near_ties(codes, audio)


def test_real_speech_has_the_nearest_entries(tmp_path, spec):
    audios = {}
    for path in sorted(WORDS.glob("*.mp3"))[:2]:
        audio, audio_hz = soundfile.read(path, dtype="float32", always_2d=True)
        audios[path.stem] = audio.mean(axis=1)[: audio_hz // 2]
    kept = _run(EncodeStage(spec), _scored(clip_table(tmp_path, audios))).kept.to_pylist()
    assert len(kept) == 2
    for row in kept:
        audio, _ = soundfile.read(row["audio_path"], dtype="float32")
        assert_near_ties(np.array(row["codes"]), audio)


def test_only_clips_strictly_above_the_threshold_are_encoded(tmp_path, spec):
    clips = clip_table(tmp_path, {name: synthetic_speech(500, 24_000) for name in "abcd"})
    table = _scored(clips, [2.5, np.nextafter(2.5, 3), 1.0712, 4.0])
    outcome = _run(EncodeStage(spec, EncodeConfig(threshold_ovrl=2.5)), table)
    assert outcome.kept["id"].to_pylist() == ["b", "d"]
    rejected = outcome.rejected.to_pylist()
    assert [(row["id"], row["reason"], row["detail"]) for row in rejected] == [
        ("a", "below_threshold", "ovrl 2.500 <= 2.5"),
        ("c", "below_threshold", "ovrl 1.071 <= 2.5"),
    ]
    assert rejected[0]["location"] == f"{tmp_path / 'a.flac'}"


def test_codes_of_the_score_stage_are_used_without_reading_the_audio(tmp_path, spec, codec):
    absent = clip_row("ready", Path("/nowhere.flac"), 1.0)
    sound = clip_table(tmp_path, {"todo": synthetic_speech(3000, 24_000)}).to_pylist()[0]
    clips = pa.Table.from_pylist([absent, sound], schema=CLIP)
    ready = list(range(14))
    kept = _run(EncodeStage(spec), _scored(clips, codes=[ready, None])).kept.to_pylist()
    assert [row["id"] for row in kept] == ["ready", "todo"]
    assert kept[0]["codes"] == ready
    assert kept[0]["frames"] == 2
    assert kept[1]["codes"] == _codes_alone(codec, sound["audio_path"])


def test_broken_clips_are_quarantined_and_the_others_kept(tmp_path, spec):
    clips = clip_table(tmp_path, {name: synthetic_speech(3000, 24_000) for name in "abc"})
    (tmp_path / "b.flac").write_bytes(b"")
    absent = clip_row("d", tmp_path / "d.flac", 1.0)
    clips = pa.Table.from_pylist([absent, *clips.to_pylist()], schema=CLIP)
    outcome = _run(EncodeStage(spec, EncodeConfig(batch_seconds=20)), _scored(clips))
    assert outcome.kept["id"].to_pylist() == ["a", "c"]
    quarantined = [(row["id"], row["reason"]) for row in outcome.quarantined.to_pylist()]
    assert quarantined == [("d", "missing_audio"), ("b", "changed_audio")]


def test_an_empty_unit_and_one_wholly_rejected_are_encoded(tmp_path, spec):
    assert _run(EncodeStage(spec), SCORED.empty_table()).num_records() == 0
    clips = clip_table(tmp_path, {"a": synthetic_speech(500, 24_000)})
    assert _run(EncodeStage(spec), _scored(clips, 1.0)).rejected.num_rows == 1


def test_content_holds_the_codec_and_threshold_but_no_resources(spec):
    stage = EncodeStage(spec)
    assert pickle.loads(pickle.dumps(stage)) == stage
    same = EncodeStage(spec, EncodeConfig(batch_seconds=20, cpus_per_worker=8, workers=2))
    assert same.content == stage.content
    assert same.resources == replace(stage.resources, cpus=8, workers=2)
    assert EncodeStage(spec, EncodeConfig(threshold_ovrl=2.6)).content != stage.content
    assert "UNTRAINED" in stage.content["codec"]["label"]
    other = EncodeStage(replace(spec, sha256="0" * 64))
    assert other.content != stage.content


def test_batches_are_for_gpus_unless_the_settings_say_otherwise(spec):
    on_gpu = replace(spec, device="cuda", engine="eager")
    fused = replace(on_gpu, engine="fused-tf32")
    assert [EncodeStage(codec).batch_seconds for codec in (spec, on_gpu, fused)] == [0, 60, 88]
    chosen = EncodeConfig(batch_seconds=5)
    assert [EncodeStage(codec, chosen).batch_seconds for codec in (spec, on_gpu)] == [5, 5]


def test_a_stage_on_cuda_asks_for_a_gpu_unless_the_settings_say_how_much(spec):
    on_gpu = EncodeStage(replace(spec, device="cuda")).resources
    assert (on_gpu.gpus, on_gpu.shares_gpu, on_gpu.threads) == (1.0, True, THREADS_PER_GPU)
    quarter = EncodeStage(replace(spec, device="cuda"), EncodeConfig(gpus_per_worker=0.25))
    assert (quarter.resources.gpus, quarter.resources.shares_gpu) == (0.25, False)
    assert EncodeStage(replace(spec, device="cuda")).with_gpus(0.25) == quarter
    on_cpu = EncodeStage(spec).resources
    assert (on_cpu.gpus, on_cpu.shares_gpu, on_cpu.threads) == (0.0, False, 1)
    assert EncodeStage(spec, EncodeConfig(cpus_per_worker=6.5)).resources.threads == 6
    rescores = ScoreStage(ScoreConfig(provider="cuda"), model=find_model())
    rescoring = EncodeStage(spec, exact_scores=rescores)
    assert rescoring.resources.gpus == 1.0
    half = rescoring.with_gpus(0.5)
    assert half.exact_scores is not None
    assert half.resources.gpus == half.exact_scores.resources.gpus == 0.5
    assert half.content == rescoring.content


def test_files_are_encoded_for_the_command_line(tmp_path, spec, codec):
    clips = clip_table(tmp_path, {"voice": synthetic_speech(5000, 24_000)}).to_pylist()
    (tmp_path / "text.wav").write_text("not audio")
    path = clips[0]["audio_path"]
    voice, text = encode_files([path, str(tmp_path / "text.wav")], codec)
    assert voice["path"] == path
    assert voice["frames"] == 3
    assert [len(codebook) for codebook in voice["codes"]] == [3, 6, 12]
    flat = flatten_codes([np.array(codebook) for codebook in voice["codes"]])
    assert flat.tolist() == _codes_alone(codec, path)
    assert set(text) == {"path", "error"}


@dataclass(frozen=True)
class _Exact:
    """A score stage whose FP32 scores are known, and which remembers what it was asked."""

    scores: dict
    asked: list

    content = {"scorer": "exact"}  # noqa: RUF012 - as of a stage
    resources = Resources()

    def open(self):
        def transform(clips: pa.Table):
            exclusions, rows = Exclusions("score"), []
            assert clips.schema == CLIP
            for row in clips.to_pylist():
                self.asked.append(row["id"])
                if self.scores[row["id"]] is None:
                    exclusions.quarantine(row["id"], row["source"], BadRecord("gone", "x"), "y")
                else:
                    rows.append(row)
            values = [self.scores[row["id"]] for row in rows]
            kept = pa.Table.from_pylist(rows, schema=CLIP)
            return exclusions.outcome(_scored(kept, np.array(values)))

        return transform


def test_scores_whose_error_reaches_the_threshold_are_settled_in_fp32(tmp_path, spec):
    audios = {f"c{i}": synthetic_speech(2048, 24_000, i) for i in range(7)}
    clips = clip_table(tmp_path, audios)
    rough = np.array([2.40, 2.48, 2.53, 2.50, 2.49, 2.60, 2.52])
    exact = {"c1": 2.51, "c2": 2.49, "c3": 2.5, "c4": None, "c6": 2.53}
    stage = EncodeStage(spec, exact_scores=_Exact(exact, asked := []))
    outcome = _run(stage, _scored(clips, rough, ovrl_error=0.03))

    assert asked == ["c1", "c2", "c3", "c4", "c6"]
    kept = {row["id"]: (row["ovrl"], row["ovrl_error"]) for row in outcome.kept.to_pylist()}
    assert kept == {"c1": (2.51, 0.0), "c5": (2.60, 0.03), "c6": (2.53, 0.0)}
    assert list(kept) == ["c1", "c5", "c6"]  # still in the order of the unit
    assert outcome.rejected["id"].to_pylist() == ["c0", "c2", "c3"]
    assert outcome.quarantined["id"].to_pylist() == ["c4"]
    assert outcome.quarantined["stage"].to_pylist() == ["encode"]


def test_inexact_scores_without_an_exact_scorer_are_refused(tmp_path, spec):
    clips = clip_table(tmp_path, {"a": synthetic_speech(2048, 24_000)})
    with pytest.raises(ContractError, match="within their error"):
        _run(EncodeStage(spec), _scored(clips, 2.49, ovrl_error=0.03))
    assert _run(EncodeStage(spec), _scored(clips, 2.46, ovrl_error=0.03)).rejected.num_rows == 1
    exact = _Exact({}, [])
    assert EncodeStage(spec, exact_scores=exact).content != EncodeStage(spec).content
