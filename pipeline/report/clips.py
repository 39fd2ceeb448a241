"""The clips to listen to: the original, and what the codec makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import stage_making
from koe.errors import BadRecord, ConfigError, StorageError
from koe.schema import CLIP
from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, SLOTS
from pipeline.report.spectrogram import RANGE_DB, mp3, picture, power
from pipeline.report.survey import BEST, BORDERLINE, FASTEST, LONGEST, SLOWEST, WORST, ClipPlace
from pipeline.run_dir.ledger import Ledger
from pipeline.stats.model import CodecUsed
from pipeline.trace.outcomes import ClipOutcome, ClipOutcomes
from stages.clips import load_clips
from stages.settings import SnacConfig
from stages.snac.codec import Codec, clip_seed, codec_of
from stages.sources.files.source_index import index_folder

MAX_SECONDS = 20  # of a clip that are embedded
MAX_SOUND_BYTES = 6_500_000  # base64 adds a third; with plotly.js the page stays below 15 MB
KINDS = {
    BORDERLINE: "Borderline",
    WORST: "Worst",
    BEST: "Best",
    FASTEST: "Fastest speech",
    SLOWEST: "Slowest speech",
    LONGEST: "Longest",
}


@dataclass(frozen=True)
class Sound:
    """A player with its picture; without audio, `note` says why there is none."""

    note: str
    mp3: bytes = b""
    png: bytes = b""


TOO_LARGE = Sound("left out to keep the page small: ask for fewer clips")


@dataclass(frozen=True)
class ShownClip:
    """A clip in the table, chosen as one of `kind`; `row` has the fields of SCORED but the codes."""

    kind: str
    row: dict[str, Any]
    outcome: ClipOutcome
    original: Sound
    reconstruction: Sound

    @property
    def rate(self) -> float:
        """Characters per second."""
        return len(self.row["text"]) / self.row["seconds"] if self.row["seconds"] else 0.0

    @property
    def headline(self) -> tuple[str, str]:
        """Number and unit of what the clip was chosen for."""
        if self.kind in (FASTEST, SLOWEST):
            return f"{self.rate:.2f}", "characters/s"
        if self.kind == LONGEST:
            return f"{self.row['seconds']:.1f}", "s"
        return f"{self.row['ovrl']:.3f}", "ovrl"

    @property
    def scores(self) -> str:
        names = [name for name in ("ovrl", "sig", "bak", "p808") if self.row.get(name) is not None]
        return " \u00b7 ".join(f"{name} {self.row[name]:.3f}" for name in names)

    @property
    def facts(self) -> str:
        row = self.row
        return (
            f"{row['seconds']:.1f} s \u00b7 {self.rate:.1f} characters/s \u00b7 "
            f"{row['audio_hz'] / 1000:g} kHz \u00b7 {row['source']}"
        )


@dataclass(frozen=True)
class Reconstruction:
    """The codec; `problem` says why there is none."""

    codec: Codec | None
    label: str = ""
    trained: bool = True
    seed: int = 0
    problem: str = ""

    @classmethod
    def open(cls, snac: SnacConfig, used: CodecUsed | None) -> Reconstruction:
        """Open the configured codec.

        `used` is the codec that made the run's codes, None where there are none. Where the weights
        are missing, or are not those, the result says so and nothing is raised.
        """
        try:
            spec = codec_of(snac)
            if used is not None and used.sha256 != spec.sha256:
                problem = (
                    f"the run was encoded by {used.label}, but snac.weights is {spec.label}. Set "
                    "snac.weights and snac.seed to those of the run, or run its encode stage again."
                )
                return cls(None, problem=problem)
            return cls(Codec.open(spec), spec.label, spec.trained, snac.seed)
        except ConfigError as error:
            return cls(None, problem=str(error))

    def of(self, id: str, audio: np.ndarray | None, codes: np.ndarray | None) -> np.ndarray | None:
        """Decode a clip's codes, or those of its audio where it was never encoded."""
        if self.codec is None or (codes is None and audio is None):
            return None
        if codes is None:
            assert audio is not None
            (codes,) = self.codec.encode([audio], id)
        codes = codes[: SLOTS * (MAX_SECONDS * CODEC_HZ // FRAME_SAMPLES)]
        return self.codec.decode(codes, clip_seed(id, self.seed), id)


def shown_clips(
    ledger: Ledger,
    picked: dict[str, list[ClipPlace]],
    reconstruct: Reconstruction,
    progress: Callable[[int, int], None],
) -> list[ShownClip]:
    """Read, decode and draw the clips picked, by kind. `progress` is called with (done, total).

    Once the page holds MAX_SOUND_BYTES, a note stands in place of audio.
    """
    chosen = [(kind, place) for kind, places in picked.items() for place in places]
    scored = [(kind, place.unit, _read(ledger, place)) for kind, place in chosen]
    outcomes = ClipOutcomes(ledger, {(unit, row["id"]) for _, unit, row in scored})
    shown, bytes_left = [], MAX_SOUND_BYTES
    for kind, unit, row in scored:
        audio = _audio(row, index_folder(ledger.storage.root))
        clip = _show(kind, row, audio, outcomes.of(unit, row["id"]), reconstruct)
        for name in ("original", "reconstruction"):
            sound: Sound = getattr(clip, name)
            size = len(sound.mp3) + len(sound.png)
            if size > bytes_left:
                clip = replace(clip, **{name: TOO_LARGE})
            else:
                bytes_left -= size
        shown.append(clip)
        progress(len(shown), len(scored))
    return shown


def _read(ledger: Ledger, place: ClipPlace) -> dict[str, Any]:
    receipt = ledger.receipt(stage_making("ovrl"), place.unit)
    assert receipt is not None  # the survey has just read it
    return ledger.read(receipt).slice(place.row, 1).to_pylist()[0]


def _show(
    kind: str,
    scored: dict[str, Any],
    loaded: tuple[np.ndarray | None, str],
    outcome: ClipOutcome,
    reconstruct: Reconstruction,
) -> ShownClip:
    # a clip near the threshold was scored again in FP32 by the encode stage
    row = scored | (outcome.encoded or {})
    codes = row.pop("codes")  # None unless it was encoded, or had to be encoded to be scored
    audio, missing = loaded
    decoded = reconstruct.of(
        row["id"], audio, None if codes is None else np.array(codes, np.uint16)
    )
    absent = "no codec" if reconstruct.codec is None else "no codes, and no audio to encode"
    top = None if audio is None else float(power(audio).max())
    return ShownClip(
        kind,
        row,
        outcome,
        Sound(missing) if audio is None else _sound(audio, row["seconds"], top),
        Sound(absent) if decoded is None else _sound(decoded, row["seconds"], top),
    )


def _audio(clip: dict[str, Any], index_folder: str) -> tuple[np.ndarray | None, str]:
    """Load a clip, float32 [samples] at 24 kHz, its first MAX_SECONDS; or say why not."""
    seconds = min(clip["seconds"], MAX_SECONDS)
    row = {name: clip.get(name) for name in CLIP.names} | {"seconds": seconds}
    try:
        table = pa.Table.from_pylist([row], schema=CLIP)
        (audio,) = load_clips(table, CODEC_HZ, index_folder=index_folder)
    except StorageError as error:
        return None, f"the source cannot be read: {error}"
    if isinstance(audio, BadRecord):
        return None, f"the source cannot be read: {audio}"
    return audio, ""


def _sound(audio: np.ndarray, seconds: float, top: float | None) -> Sound:
    """Draw and compress audio; `top` dB, the original's loudest point, is the brightest."""
    decibels = power(audio)
    drawn = picture(decibels, max(float(decibels.max()), -RANGE_DB) if top is None else top)
    note = f"first {MAX_SECONDS} s of {seconds:.1f} s" if seconds > MAX_SECONDS else ""
    return Sound(note, mp3(audio), drawn)
