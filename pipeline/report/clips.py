"""The clips that the page lets one hear: original, and what the codec makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SnacConfig
from pipeline.errors import BadRecord, ConfigError, StorageError
from pipeline.ledger import Ledger, Receipt
from pipeline.report.spectrogram import RANGE_DB, mp3, picture, power
from pipeline.report.survey import Place
from pipeline.schema import CLIP
from pipeline.vocabulary import CODEC_HZ, FRAME_SAMPLES, SLOTS
from stages.clips import load_clips
from stages.snac import Codec, clip_seed, resolve_codec

MOST_SECONDS = 20  # of a clip that are embedded


@dataclass(frozen=True)
class Sound:
    """A player with its picture; without audio, `note` says why there is none."""

    note: str
    mp3: bytes = b""
    png: bytes = b""


@dataclass(frozen=True)
class ShownClip:
    """A clip of the table. `clip` has the fields of SCORED but for the codes.

    `fate` is kept or the reason why it was not; `outcome` is kept, rejected, quarantined or
    pending.
    """

    kind: str
    clip: dict[str, Any]
    outcome: str
    fate: str
    original: Sound
    reconstruction: Sound


@dataclass(frozen=True)
class Reconstruction:
    """The codec; `problem` says why there is none."""

    codec: Codec | None
    label: str = ""
    trained: bool = True
    seed: int = 0
    problem: str = ""

    @classmethod
    def open(cls, snac: SnacConfig) -> Reconstruction:
        """Open the configured codec; weights that cannot be had are said, not raised."""
        try:
            spec = resolve_codec(snac.weights, snac.sha256, snac.seed, snac.device, snac.engine)
            return cls(Codec.open(spec), spec.label, spec.trained, snac.seed)
        except ConfigError as error:
            return cls(None, problem=str(error))

    @classmethod
    def none(cls) -> Reconstruction:
        """Return one for a page without clips."""
        return cls(None)

    def of(self, id: str, audio: np.ndarray | None, codes: np.ndarray | None) -> np.ndarray | None:
        """Decode a clip's codes, or those of its audio where it was never encoded."""
        if self.codec is None or (codes is None and audio is None):
            return None
        if codes is None:
            assert audio is not None
            codes = self.codec.encode(audio[np.newaxis], id)[0]
        codes = codes[: SLOTS * (MOST_SECONDS * CODEC_HZ // FRAME_SAMPLES)]
        return self.codec.decode(codes, clip_seed(id, self.seed), id)


def shown_clips(
    ledger: Ledger,
    picked: dict[str, list[Place]],
    reconstruct: Reconstruction,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ShownClip]:
    """Read, decode and draw the clips picked, by kind. `progress` is told (done, total)."""
    total = sum(len(places) for places in picked.values())
    shown = []
    for kind, places in picked.items():
        for place in places:
            shown.append(_show(ledger, kind, place, reconstruct))
            progress(len(shown), total)
    return shown


def _show(ledger: Ledger, kind: str, place: Place, reconstruct: Reconstruction) -> ShownClip:
    score = ledger.receipt("score", place.unit)
    assert score is not None  # the survey has just read it
    table = ledger.read(score).slice(place.row, 1)
    codes = table["codes"].to_pylist()[0]  # there already where scoring had to encode
    clip = table.drop_columns(["codes"]).to_pylist()[0]
    outcome, fate, stored = _fate(ledger, score, clip["id"])
    if stored is not None:
        codes = stored.pop("codes")
        clip |= stored  # scored again in FP32 where the score was near the threshold
    audio, missing = _audio(clip)
    flat = None if codes is None else np.array(codes, np.uint16)
    decoded = reconstruct.of(clip["id"], audio, flat)
    absent = "no codec" if reconstruct.codec is None else "no codes, and no audio to encode"
    top = None if audio is None else float(power(audio).max())
    return ShownClip(
        kind,
        clip,
        outcome,
        fate,
        Sound(missing) if audio is None else _sound(audio, clip["seconds"], top),
        Sound(absent) if decoded is None else _sound(decoded, clip["seconds"], top),
    )


def _fate(ledger: Ledger, score: Receipt, id: str) -> tuple[str, str, dict[str, Any] | None]:
    """Return what became of a clip after scoring, why, and its row with codes if it has one."""
    encode = ledger.receipt("encode", score.unit)
    if encode is None or encode.input_sha256 != score.output.sha256:
        return "pending", "not encoded yet", None
    for stage in ("encode", "tokenize"):
        receipt = ledger.receipt(stage, score.unit)
        excluded = None if receipt is None else ledger.read_excluded(receipt)
        found = [] if excluded is None else _rows_of(excluded, id)
        if found:
            row = found[0]
            return row["outcome"], f"{row['reason']}: {row['detail']}", _kept(ledger, encode, id)
    return "kept", "", _kept(ledger, encode, id)


def _kept(ledger: Ledger, encode: Receipt, id: str) -> dict[str, Any] | None:
    found = _rows_of(ledger.read(encode), id)
    return found[0] if found else None


def _rows_of(table: pa.Table, id: str) -> list[dict[str, Any]]:
    return table.filter(pc.field("id") == id).to_pylist()


def _audio(clip: dict[str, Any]) -> tuple[np.ndarray | None, str]:
    """Load a clip, float32 [samples] at 24 kHz, its first MOST_SECONDS; or say why not."""
    seconds = min(clip["seconds"], MOST_SECONDS)
    row = {name: clip[name] for name in CLIP.names} | {"seconds": seconds}
    try:
        (audio,) = load_clips(pa.Table.from_pylist([row], schema=CLIP), CODEC_HZ)
    except StorageError as error:
        return None, f"the source cannot be read: {error}"
    if isinstance(audio, BadRecord):
        return None, f"the source cannot be read: {audio}"
    return audio, ""


def _sound(audio: np.ndarray, seconds: float, top: float | None) -> Sound:
    """Draw and compress audio; `top` dB, the original's loudest point, is the brightest."""
    decibels = power(audio)
    drawn = picture(decibels, max(float(decibels.max()), -RANGE_DB) if top is None else top)
    note = f"first {MOST_SECONDS} s of {seconds:.1f} s" if seconds > MOST_SECONDS else ""
    return Sound(note, mp3(audio), drawn)
