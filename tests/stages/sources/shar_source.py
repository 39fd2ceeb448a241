"""Sources of Lhotse's sets, compared with what lhotse reads."""

from __future__ import annotations

import numpy as np
from lhotse import CutSet, RecordingSet, SupervisionSet, fastcopy

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.sources.lhotse_sets import clips_of, recording, supervision
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
