"""The score stage keeps a score of every sound clip, and a reason for every other one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from koe.errors import ConfigError, StageError
from koe.schema import CLIP
from koe.stage import Stage, check_outcome
from stages.audio.decode import decode, resample
from stages.dnsmos.batches import BatchedNetwork
from stages.dnsmos.engines import BF16_OVRL_ERROR, NATIVE_BF16_OVRL_ERROR, resolve_engine
from stages.dnsmos.network import cut
from stages.dnsmos.on_torch import torch_parts
from stages.dnsmos.scorer import P808_FILE, DnsmosModel, DnsmosScorer, find_model
from stages.score import ScoreStage, score_files
from stages.settings import ScoreConfig
from stages.snac.codec import Codec, clip_seed, resolve_codec
from tests.stages.speech import clip_row, clip_table, synthetic_speech, write_snac_weights

MODEL = find_model()
_SEVERAL_WINDOWS = {
    f"long{i}": synthetic_speech(round(24_000 * seconds), 24_000, i)
    for i, seconds in enumerate((9.1, 11.2))
}


def _stage(p808=None, codec=None, **settings) -> ScoreStage:
    return ScoreStage(ScoreConfig(**settings), MODEL, p808, codec)


EXACT = {"precision": "fp32", "engine": resolve_engine("auto", "cpu", "fp32")}


def _run(stage: Stage, clips: pa.Table):
    return check_outcome(stage, clips.num_rows, stage.open()(clips))


@pytest.fixture(scope="module")
def scorer() -> DnsmosScorer:
    return DnsmosScorer(MODEL.path)


def _mixed_unit(folder: Path) -> pa.Table:
    """Three sound clips of one window each, with five unusable ones between them."""
    voice = synthetic_speech(14_400, 24_000)
    sound = clip_table(folder, {f"sound{i}": voice * (1 - 0.3 * i) for i in range(3)}).to_pylist()

    def broken(name: str, audio: np.ndarray) -> dict:
        path = folder / f"{name}.wav"
        soundfile.write(path, audio, 24_000, subtype="FLOAT")
        return clip_row(name, path, len(audio) / 24_000)

    truncated = broken("truncated", voice)
    whole = Path(truncated["audio_path"]).read_bytes()
    Path(truncated["audio_path"]).write_bytes(whole[: len(whole) // 2])
    nan = voice.copy()
    nan[100] = np.nan
    rows = [
        sound[0],
        truncated,
        broken("zeros", np.zeros(14_400, np.float32)),
        sound[1],
        broken("nan", nan),
        broken("integers", voice * 32_767),
        clip_row("absent", folder / "absent.wav", 1.0),
        sound[2],
    ]
    return pa.Table.from_pylist(rows, schema=CLIP)


def test_every_clip_is_scored_or_quarantined_in_order(tmp_path, scorer):
    stage = _stage()
    outcome = _run(stage, _mixed_unit(tmp_path))

    kept = outcome.kept.to_pylist()
    assert [row["id"] for row in kept] == ["sound0", "sound1", "sound2"]
    for row in kept:
        audio, audio_hz = decode(Path(row["audio_path"]).read_bytes())
        expected = scorer.score(resample(audio, audio_hz, 16_000), "reference")
        assert (row["sig"], row["bak"], row["ovrl"]) == (expected.sig, expected.bak, expected.ovrl)
        assert row["windows"] == expected.windows == 1
        assert row["scorer"] == stage.label
        assert row["codes"] is None

    assert outcome.rejected.num_rows == 0
    reasons = {row["id"]: row["reason"] for row in outcome.quarantined.to_pylist()}
    assert reasons == {
        "truncated": "changed_audio",
        "zeros": "all_zero_audio",
        "nan": "nonfinite_audio",
        "integers": "out_of_scale_audio",
        "absent": "missing_audio",
    }
    assert list(reasons) == ["truncated", "zeros", "nan", "integers", "absent"]
    places = outcome.quarantined["location"].to_pylist()
    assert places[0] == f"{tmp_path / 'truncated.wav'}"


@pytest.mark.slow
def test_clips_scored_together_keep_their_rows(tmp_path, monkeypatch):
    """As on a GPU, where a batch ends after others that began later, with unusable clips between."""
    unit = pa.concat_tables([_mixed_unit(tmp_path), clip_table(tmp_path, _SEVERAL_WINDOWS)])
    turned = unit.take(pa.array(range(unit.num_rows - 1, -1, -1)))
    parts = torch_parts(cut(Path(MODEL.path).read_bytes()), "cpu", "fp32")
    opened = []

    def on_gpu(path, provider, precision, engine, map_segments, gpu_share):
        opened.append(gpu_share)
        return BatchedNetwork(parts, "cpu", 4_000)

    expected = _run(_stage(), turned)
    monkeypatch.setattr("stages.dnsmos.scorer.open_network", on_gpu)
    outcome = _run(_stage(gpus_per_worker=0.25), turned)
    assert opened == [0.25]
    assert outcome.quarantined.equals(expected.quarantined)
    scores = ["sig", "bak", "ovrl"]
    assert outcome.kept.drop_columns(scores).equals(expected.kept.drop_columns(scores))
    assert set(outcome.kept["windows"].to_pylist()) == {1, 2}
    for name in scores:
        found, alone = outcome.kept[name].to_numpy(), expected.kept[name].to_numpy()
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_an_empty_unit_is_scored(tmp_path):
    outcome = _run(_stage(), CLIP.empty_table())
    assert outcome.num_records() == 0


def test_low_scores_are_kept_for_the_next_stage_to_judge(tmp_path):
    noise = 0.3 * np.random.default_rng(0).standard_normal(14_400)
    outcome = _run(_stage(), clip_table(tmp_path, {"noise": np.clip(noise, -1, 1)}))
    assert outcome.kept["ovrl"].to_pylist()[0] < 2


def test_source_scores_are_taken_without_touching_the_audio():
    rows = [
        {**clip_row(f"clip{i}", Path("/nowhere.wav"), 1.0), "source_ovrl": ovrl}
        for i, ovrl in enumerate([3.1, None, float("nan"), 1.2, float("inf")])
    ]
    outcome = _run(
        ScoreStage(ScoreConfig(scorer="source")), pa.Table.from_pylist(rows, schema=CLIP)
    )
    kept = outcome.kept.to_pylist()
    assert [(row["id"], row["ovrl"], row["windows"]) for row in kept] == [
        ("clip0", 3.1, 0),
        ("clip3", 1.2, 0),
    ]
    assert {(row["sig"], row["bak"], row["scorer"]) for row in kept} == {(None, None, "source")}
    assert outcome.quarantined["reason"].to_pylist() == ["missing_score"] * 3
    details = outcome.quarantined["detail"].to_pylist()
    assert details == ["source_ovrl is null", "source_ovrl is nan", "source_ovrl is inf"]


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [0.0, 60.0])  # seconds: clip by clip, and as on a GPU
def test_reconstruction_scores_what_the_codec_makes_of_the_clip(
    tmp_path, scorer, monkeypatch, at_once
):
    monkeypatch.setattr("stages.score.usual_batch_seconds", lambda *_: at_once)
    # The seed is of the noise alone. The engine puts the longest clip of a batch first.
    spec = resolve_codec(str(write_snac_weights(tmp_path)), seed=5, engine="eager")
    # One window each; the first is not of whole frames, so its decoded end is cut off.
    audios = {"a": synthetic_speech(7200, 24_000, 1), "b": synthetic_speech(8192, 24_000)}
    clips = clip_table(tmp_path, audios)
    stage = _stage(signal="reconstruction", codec=spec)
    transform = stage.open()
    kept = check_outcome(stage, 2, transform(clips)).kept.to_pylist()

    codec = Codec.open(spec)
    for row in kept:
        audio, _ = decode(Path(row["audio_path"]).read_bytes())
        (codes,) = codec.encode(audio[None])
        assert row["codes"] == codes.tolist()
        heard = codec.decode(codes, clip_seed(row["id"], 5))[: len(audio)]
        assert row["ovrl"] == scorer.score(resample(heard, 24_000, 16_000), "reference").ovrl
    assert transform(clips.slice(1)).kept["ovrl"].to_pylist() == [kept[1]["ovrl"]]


def test_the_label_and_content_say_what_decides_the_scores():
    stage = _stage()
    assert stage.label == (
        f"dnsmos-p835 sha256:{MODEL.sha256[:8]} windows=reference signal=original fp32 "
        "provider=cpu engine=auto"
    )
    untrained = resolve_codec("untrained")
    reconstruction = _stage(signal="reconstruction", codec=untrained)
    assert "signal=reconstruction of UNTRAINED (seed 0)" in reconstruction.label

    variants = [
        stage,
        reconstruction,
        _stage(signal="reconstruction", codec=replace(untrained, sha256="0" * 64)),
        _stage(signal="reconstruction", codec=replace(untrained, seed=1)),
        _stage(windows="all"),
        _stage(provider="cuda"),
        _stage(precision="bf16"),
        _stage(p808=find_model(None, P808_FILE)),
        replace(stage, model=DnsmosModel(MODEL.path, "0" * 64)),
        ScoreStage(ScoreConfig(scorer="source")),
    ]
    contents = [variant.content for variant in variants]
    assert all(contents.count(content) == 1 for content in contents)
    assert _stage(cpus_per_worker=4, workers=3).content == stage.content
    assert _stage(codec=untrained).content == stage.content  # it plays no part
    assert _stage(engine="torch").content != stage.content  # the last bits differ
    assert (
        replace(stage, model=DnsmosModel("/elsewhere.onnx", MODEL.sha256)).content == stage.content
    )


def test_a_stage_on_cuda_asks_for_a_gpu():
    codec = resolve_codec("untrained")
    on_gpu = replace(codec, device="cuda")
    assert _stage(provider="cuda").resources.gpus == 1.0
    assert _stage(provider="cuda", gpus_per_worker=2).resources.gpus == 2.0
    assert _stage().resources.gpus == 0.0
    assert _stage(codec=on_gpu).resources.gpus == 0.0  # it plays no part
    assert _stage(signal="reconstruction", codec=codec).resources.gpus == 0.0
    assert _stage(signal="reconstruction", codec=on_gpu).resources.gpus == 1.0
    assert ScoreStage(ScoreConfig(scorer="source", provider="cuda")).resources.gpus == 0.0


def test_an_inexact_score_says_so_and_knows_its_exact_stage():
    assert _stage().ovrl_error == ScoreStage(ScoreConfig(scorer="source")).ovrl_error == 0
    stage = _stage(precision="bf16")
    assert stage.ovrl_error == NATIVE_BF16_OVRL_ERROR  # the larger one, until the engine is known
    assert _stage(precision="bf16", engine="torch").ovrl_error == BF16_OVRL_ERROR
    assert stage.exact().ovrl_error == 0
    assert " bf16 " in _stage(precision="bf16").label
    assert stage.exact() == replace(stage, settings=stage.settings.model_copy(update=EXACT))


def test_a_provider_that_was_removed_is_refused_with_its_remedy():
    with pytest.raises(ValueError, match=r"set score\.provider: cuda"):
        ScoreConfig(provider="tensorrt")  # pyright: ignore[reportArgumentType]


def test_the_stage_is_picklable_and_refuses_what_it_cannot_run():
    stage = _stage()
    assert pickle.loads(pickle.dumps(stage)) == stage
    with pytest.raises(ConfigError, match="no DNSMOS model"):
        ScoreStage()
    with pytest.raises(ConfigError, match="needs a codec"):
        _stage(signal="reconstruction")
    with pytest.raises(ConfigError, match="not the one that the run was planned with"):
        replace(stage, model=DnsmosModel(MODEL.path, "0" * 64)).open()


def test_a_failing_scorer_stops_the_unit_instead_of_blaming_the_clip(tmp_path, monkeypatch):
    clips = clip_table(tmp_path, {"clip-7": synthetic_speech(14_400, 24_000)})
    monkeypatch.setattr(
        "stages.dnsmos.network.Network.raw_scores", lambda *_: np.full((1, 3), np.nan, np.float32)
    )
    with pytest.raises(StageError, match="clip-7") as caught:
        _stage().open()(clips)
    assert caught.value.clip_id == "clip-7"


def test_files_are_scored_for_the_command_line(tmp_path, scorer):
    audio = synthetic_speech(14_400, 24_000)
    clips = clip_table(tmp_path, {"voice": audio}).to_pylist()
    (tmp_path / "text.wav").write_text("not audio")
    paths = [clips[0]["audio_path"], str(tmp_path / "text.wav"), str(tmp_path / "absent.wav")]
    voice, text, absent = score_files(paths, scorer, "reference", threshold_ovrl=0.5)

    expected = scorer.score(resample(decode(Path(paths[0]).read_bytes())[0], 24_000, 16_000), "all")
    assert voice == {
        "path": paths[0],
        "seconds": 0.6,
        "windows": 1,
        "sig": expected.sig,
        "bak": expected.bak,
        "ovrl": expected.ovrl,
        "keep": True,
    }
    assert score_files(paths[:1], scorer, "reference", threshold_ovrl=5)[0]["keep"] is False
    assert set(text) == set(absent) == {"path", "error"}
    assert "unreadable_audio" in text["error"]
    assert "No such file" in absent["error"]
