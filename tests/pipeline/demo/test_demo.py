"""The demo corpus: complete, readable, deterministic, and broken exactly where it says."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from koe.errors import BadRecord, ConfigError
from koe.schema import UNIT
from pipeline.config.load import load_config
from pipeline.demo.clips import DATA, make_clips, read_json_lines, recordings
from pipeline.demo.corpus import CONFIG, MARKER, TRUTH, DemoReport, write_demo
from pipeline.demo.degrade import DEGRADATIONS, mix
from pipeline.demo.layouts import BROKEN
from pipeline.jobs.assembly import Assembly
from stages.clips import load_clips

NUM_CLIPS, NUM_SAMPLES = 24, 60


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoReport:
    return write_demo(tmp_path_factory.mktemp("demo") / "corpus", NUM_CLIPS, NUM_SAMPLES)


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def good_clips(demo: DemoReport) -> list[dict]:
    return [line for line in json_lines(demo.folder / TRUTH) if "codec" in line]


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_report_counts_what_the_corpus_holds(demo):
    clips = good_clips(demo)
    assert len(clips) == demo.clips == NUM_CLIPS
    assert demo.degraded == Counter(clip["degradation"] for clip in clips if clip["degradation"])
    assert set(demo.degraded) == set(DEGRADATIONS)
    assert {clip["source"] for clip in clips} == {"manifest", "tar", "parquet", "folder"}
    assert {clip["codec"] for clip in clips} == {"wav", "flac", "mp3", "opus"}
    assert {clip["channels"] for clip in clips} == {1, 2}
    rates = {clip["audio_hz"] for clip in clips}
    assert {8_000, 48_000} < rates
    assert len(rates) >= 5
    assert demo.seconds == pytest.approx(sum(clip["seconds"] for clip in clips), abs=0.1)
    assert len(BROKEN) == sum(demo.broken.values()) == 12


def test_its_configuration_loads_and_points_into_the_corpus(demo):
    config = load_config(demo.folder / CONFIG)
    for source in (*config.sources.speech, *config.sources.text):
        for pattern in source.paths:
            assert list(demo.folder.glob(str(Path(pattern).relative_to(demo.folder)))), pattern
    assert config.snac.weights == "untrained"
    assert config.train.base_model is None


def test_every_clip_is_read_or_quarantined_for_the_stated_reason(demo):
    """Runs the real ingest stage and decoder over all four sources."""
    config = load_config(demo.folder / CONFIG)
    assembly = Assembly(config)
    units = [vars(unit) for source in assembly.speech_sources for unit in source.units()]
    outcome = assembly.ingest().open()(pa.Table.from_pylist(units, schema=UNIT))
    audio = list(load_clips(outcome.kept, 16_000))
    bad = Counter(
        zip(*outcome.quarantined.select(["source", "reason"]).to_pydict().values(), strict=True)
    )
    for source, clip in zip(outcome.kept["source"].to_pylist(), audio, strict=True):
        if isinstance(clip, BadRecord):
            bad[source, clip.reason] += 1
    expected = Counter(
        (item.source, item.reason) for item in BROKEN if item.source != "instructions"
    )
    assert bad == expected
    assert sum(not isinstance(clip, BadRecord) for clip in audio) == NUM_CLIPS


def test_audio_has_the_stated_rate_length_and_a_sane_level(demo):
    truth = {line["id"]: line for line in good_clips(demo)}
    table = pq.read_table(demo.folder / "speech/parquet/speech-000.parquet").to_pylist()
    files = {row["id"]: row["audio"]["bytes"] for row in table if row["id"] in truth}
    for path in (demo.folder / "speech").rglob("*.*"):
        if path.stem in truth:
            files[path.stem] = path.read_bytes()
    assert len(files) == sum(clip["source"] != "tar" for clip in truth.values())
    for clip_id, data in files.items():
        audio, audio_hz = soundfile.read(io.BytesIO(data), always_2d=True)
        clip = truth[clip_id]
        assert (audio_hz, audio.shape[1]) == (clip["audio_hz"], clip["channels"])
        assert len(audio) / audio_hz == pytest.approx(clip["seconds"], abs=0.05)
        assert 0.05 < np.abs(audio).max() <= 1.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_only_other_degradations(demo, tmp_path):
    again = write_demo(tmp_path / "again", NUM_CLIPS, NUM_SAMPLES)
    assert contents(again.folder) == contents(demo.folder)
    for ours, other in zip(make_clips(9, 0), make_clips(9, 1), strict=True):
        assert (ours.audio != other.audio) == bool(ours.degradation)


@pytest.mark.slow
def test_an_existing_demo_is_reused_or_refused(demo):
    before = contents(demo.folder)
    config = (demo.folder / CONFIG).read_text("utf-8")
    (demo.folder / CONFIG).write_text(config + "# edited\n", "utf-8")
    again = write_demo(demo.folder, NUM_CLIPS, NUM_SAMPLES)
    assert again.reused
    assert "already" in again.describe()
    assert (demo.folder / CONFIG).read_text("utf-8") == config + "# edited\n"
    (demo.folder / CONFIG).write_text(config, "utf-8")
    assert contents(demo.folder) == before
    with pytest.raises(ConfigError, match="another demo"):
        write_demo(demo.folder, NUM_CLIPS, NUM_SAMPLES, seed=1)


@pytest.mark.slow
def test_an_interrupted_demo_is_completed(demo, tmp_path):
    folder = shutil.copytree(demo.folder, tmp_path / "cut")
    tar = folder / "speech/tar/speech-000.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    (folder / TRUTH).unlink()
    assert not write_demo(folder, NUM_CLIPS, NUM_SAMPLES).reused
    assert contents(folder) == contents(demo.folder)


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_demo(tmp_path, NUM_CLIPS, NUM_SAMPLES)
    (tmp_path / MARKER).write_text("[]")
    with pytest.raises(ConfigError, match="not a demo's marker"):
        write_demo(tmp_path, NUM_CLIPS, NUM_SAMPLES)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", MARKER}


@pytest.mark.parametrize(("clips", "samples"), [(3, 60), (100_000, 60), (36, 0), (36, 100_000)])
def test_more_or_less_than_the_package_holds_is_refused(clips, samples, tmp_path):
    with pytest.raises(ConfigError, match="the package holds"):
        write_demo(tmp_path / "corpus", clips, samples)
    assert not (tmp_path / "corpus").exists()


def test_the_package_holds_what_it_says_and_its_licences():
    speech, text = DATA / "speech", DATA / "text"
    listed = {recording["audio_filepath"] for recording in recordings()}
    assert listed == {file.name for file in speech.iterdir() if file.name.endswith(".opus")}
    assert len(listed) == 150
    for recording in recordings():
        data = io.BytesIO((speech / recording["audio_filepath"]).read_bytes())
        header = soundfile.info(data)
        assert (header.samplerate, header.channels, header.subtype) == (24_000, 1, "OPUS")
        assert header.duration == pytest.approx(recording["duration"], abs=0.001)
        assert recording["text"]
    assert "ShareAlike 4.0" in (speech / "LICENSE").read_text("utf-8")
    assert "Tofugu" in (speech / "README.md").read_text("utf-8")
    rows = list(read_json_lines(text / "dolly_ja.jsonl"))
    assert all(set(row) >= {"index", "instruction", "input", "output"} for row in rows)
    assert len({row["index"] for row in rows}) == len(rows) >= 300
    readme = (text / "README.md").read_text("utf-8")
    assert all(name in readme for name in ("CC BY-SA 3.0", "MIT", "Databricks", "megagonlabs"))
    assert "ShareAlike 3.0" in (text / "LICENSE-CC-BY-SA-3.0").read_text("utf-8")
    assert "Megagon Labs" in (text / "LICENSE-MIT").read_text("utf-8")


def test_the_licences_are_written_beside_the_data(demo):
    for room, names in {
        "speech": ["LICENSE"],
        "text": ["LICENSE-MIT", "LICENSE-CC-BY-SA-3.0"],
    }.items():
        for name in (*names, "README.md"):
            assert (demo.folder / room / name).read_bytes() == (DATA / room / name).read_bytes()


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_a_degradation_changes_the_audio_only_by_its_generator(name):
    time = np.arange(16_000, dtype=np.float32) / 16_000
    audio = (0.5 * np.sin(2 * np.pi * 440 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)
    before = audio.copy()
    first, second, other = (
        DEGRADATIONS[name](audio, 16_000, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.dtype == np.float32
    assert first.shape == audio.shape
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(audio, before)
    assert not np.array_equal(first, other)
    assert not np.allclose(first, audio)


def test_noise_is_mixed_at_the_asked_ratio():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(50_000).astype(np.float32)
    noise = mix(audio, rng.standard_normal(50_000), 12.0) - audio
    assert 10 * np.log10(np.mean(audio**2) / np.mean(noise**2)) == pytest.approx(12.0, abs=0.01)
