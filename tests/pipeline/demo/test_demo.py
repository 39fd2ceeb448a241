"""The demo corpus: complete, readable, deterministic, and broken exactly where it says."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
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
from pipeline.demo import speech
from pipeline.demo.broken import BROKEN
from pipeline.demo.clips import dnsmos_windows
from pipeline.demo.corpus import MARKER, TRUTH, DemoReport, make_clips, write_demo
from pipeline.demo.degrade import DEGRADATIONS, mix, quantise_mu_law
from pipeline.demo.instructions import GENERATORS, conversations, instruction_rows
from pipeline.demo.ogg import page_crc, pin_serial
from pipeline.jobs.assembly import Assembly
from stages.clips import load_clips

NUM_CLIPS, NUM_INSTRUCTIONS = 24, 60
needs_voice = pytest.mark.skipif(
    importlib.util.find_spec("pyopenjtalk") is None, reason="needs the extra `demo`"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoReport:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    steps: list[tuple[int, int]] = []
    report = write_demo(
        folder, NUM_CLIPS, NUM_INSTRUCTIONS, progress=lambda *step: steps.append(step)
    )
    assert steps == [(step, 2 * NUM_CLIPS) for step in range(1, 2 * NUM_CLIPS + 1)]
    return report


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@needs_voice
def test_the_report_counts_what_the_corpus_holds(demo):
    clips = [line for line in json_lines(demo.folder / TRUTH) if "codec" in line]
    assert len(clips) == demo.clips == NUM_CLIPS
    assert demo.degraded == Counter(clip["degradation"] for clip in clips if clip["degradation"])
    assert set(demo.degraded) == set(DEGRADATIONS)
    assert sum(demo.degraded.values()) == NUM_CLIPS // 3
    assert set(demo.clips_by_source) == {"manifest", "tar", "parquet", "folder"}
    assert {clip["codec"] for clip in clips} == {"wav", "flac", "mp3", "opus"}
    assert min(demo.unusual.values()) >= 1
    assert all(0.95 <= clip["seconds"] <= 15 for clip in clips)
    assert demo.seconds == pytest.approx(sum(clip["seconds"] for clip in clips), abs=0.1)


@needs_voice
def test_its_configuration_loads_and_points_into_the_corpus(demo):
    config = load_config(demo.config_path)
    for source in (*config.sources.speech, *config.sources.text):
        for pattern in source.paths:
            assert list(demo.folder.glob(str(Path(pattern).relative_to(demo.folder)))), pattern
    assert config.snac.weights == "untrained"
    assert config.snac.sha256 is None
    assert config.train.base_model is None


@needs_voice
def test_every_clip_is_read_or_quarantined_for_the_stated_reason(demo):
    """Runs the real ingest stage and decoder over all four sources."""
    config = load_config(demo.config_path)
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
    # "repeated-near" is a good record the first time
    assert sum(not isinstance(clip, BadRecord) for clip in audio) == NUM_CLIPS + 1


@needs_voice
def test_audio_has_the_stated_rate_length_and_a_sane_level(demo):
    truth = {line["id"]: line for line in json_lines(demo.folder / TRUTH) if "codec" in line}
    table = pq.read_table(demo.folder / "speech/parquet/speech-000.parquet").to_pylist()
    files = {row["id"]: row["audio"]["bytes"] for row in table if row["id"] in truth}
    for path in (demo.folder / "speech").rglob("koe-*.*"):
        files[path.stem] = path.read_bytes()
    assert len(files) == NUM_CLIPS - demo.clips_by_source["tar"]
    for clip_id, data in files.items():
        audio, audio_hz = soundfile.read(io.BytesIO(data), always_2d=True)
        clip = truth[clip_id]
        assert (audio_hz, audio.shape[1]) == (clip["audio_hz"], clip["channels"])
        assert len(audio) / audio_hz == pytest.approx(clip["seconds"], abs=0.05)
        assert 0.05 < np.abs(audio).max() <= 1.0


@needs_voice
def test_clips_do_not_depend_on_the_number_of_workers():
    one, two = (make_clips(5, 3, workers, lambda done, total: None) for workers in (1, 2))
    assert one == two
    assert {clip.plan.codec for clip in one} == {"flac", "mp3", "opus"}


@needs_voice
def test_an_existing_demo_is_reused_or_refused(demo):
    hashes = {
        name: item["sha256"]
        for name, item in json.loads((demo.folder / MARKER).read_text())["files"].items()
    }
    for name, digest in hashes.items():
        assert hashlib.sha256((demo.folder / name).read_bytes()).hexdigest() == digest
    again = write_demo(demo.folder, NUM_CLIPS, NUM_INSTRUCTIONS)
    assert again.reused
    assert "already" in again.describe()
    assert (again.clips, again.broken) == (demo.clips, demo.broken)
    with pytest.raises(ConfigError, match="another demo"):
        write_demo(demo.folder, NUM_CLIPS, NUM_INSTRUCTIONS, seed=1)


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_demo(tmp_path, NUM_CLIPS, NUM_INSTRUCTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_synthesiser_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(speech.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"koe-pretrain\[demo\]"):
        write_demo(tmp_path / "corpus", NUM_CLIPS, NUM_INSTRUCTIONS)
    assert not (tmp_path / "corpus").exists()


def test_instructions_are_varied_unique_and_repeatable():
    rows, again = (instruction_rows(500, np.random.default_rng(5)) for _ in range(2))
    assert rows == again
    assert list(rows[0]) == ["index", "instruction", "input", "output", "category"]
    assert len({(row["instruction"], row["input"]) for row in rows}) == 500
    assert all(row["output"].strip() for row in rows)
    assert len({row["category"] for row in rows}) >= 12
    lengths = [len(row["instruction"] + row["input"] + row["output"]) for row in rows]
    assert 100 <= np.mean(lengths) <= 250
    assert max(lengths) > 1000


def test_every_generator_writes_samples():
    rng = np.random.default_rng(0)
    for generator in GENERATORS:
        for _ in range(20):
            sample = generator(rng)
            assert sample.instruction
            assert sample.output
    for dialogue in conversations(20, rng):
        roles = [message["role"] for message in dialogue["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) >= 4


def test_there_are_enough_sentences_and_none_twice():
    sentences = speech.read_sentences()
    assert len(sentences) >= 160
    assert len(set(sentences)) == len(sentences)


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


def test_mu_law_keeps_the_ends_and_the_number_of_levels():
    levels = np.unique(quantise_mu_law(np.linspace(-1, 1, 10_001), 4))
    assert len(levels) == 15
    assert (levels[0], levels[-1]) == pytest.approx((-1.0, 1.0))


@pytest.mark.parametrize(
    ("seconds", "windows"),
    [(1, 7), (3, 3), (4, 7), (5, 1), (6, 3), (8, 7), (9.0, 7), (10, 1), (15, 6), (20, 7), (30, 7)],
)
def test_windows_are_counted_as_the_reference_does(seconds, windows):
    assert dnsmos_windows(seconds) == windows


def test_a_pinned_ogg_stream_is_the_same_audio():
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(24_000)).astype(np.float32)
    encoded = []
    for _ in range(2):
        file = io.BytesIO()
        soundfile.write(file, audio, 24_000, format="OGG", subtype="OPUS")
        encoded.append(file.getvalue())
    assert pin_serial(encoded[0], 7) == pin_serial(encoded[1], 7)
    decoded = [
        soundfile.read(io.BytesIO(data))[0] for data in (encoded[0], pin_serial(encoded[0], 7))
    ]
    np.testing.assert_array_equal(*decoded)
    head = encoded[0][:28]  # the first page is the header and 19 bytes of OpusHead
    blank = head[:22] + bytes(4) + encoded[0][26:47]
    assert page_crc(blank) == int.from_bytes(head[22:26], "little")
    with pytest.raises(ValueError, match="no Ogg page"):
        pin_serial(bytes(64), 7)
