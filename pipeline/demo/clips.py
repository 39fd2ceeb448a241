"""The demo's good clips: what each shall be, and its encoded audio."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio

from pipeline.demo.degrade import DEGRADATIONS
from pipeline.demo.ogg import pin_serial
from pipeline.demo.speech import SYNTHESIS_HZ, Utterance

MIN_SECONDS, MAX_SECONDS = 1.0, 15.0
_PAUSE_SECONDS = 0.35
_LONGEST_CLOSING_SECONDS = 1.0
_CHEAP_SECONDS = (1.15, 2.28, 4.53, 9.04)
# The periods and the number of sources have no common factor, so that everything meets everything.
_DEGRADED_EVERY = 3
_PAIR_EVERY = 7  # joins two sentences; such clips reach 10 to 15 s
_STEREO_EVERY, _NARROW_EVERY = 17, 23  # unusual but good: two channels; 8 kHz
_RATES_HZ = (16_000, 22_050, 24_000, 44_100, 48_000)
_OPUS_RATES_HZ = (16_000, 24_000, 48_000)  # the codec knows no others
_TAPE_SPEEDS = (0.92, 0.96, 1.0, 1.04, 1.08)
_SOURCES = ("manifest", "tar", "manifest", "parquet", "manifest", "folder", "tar", "parquet")
_CODECS = {
    "manifest": ("flac", "wav"),
    "tar": ("mp3", "flac"),
    "parquet": ("opus", "flac"),
    "folder": ("wav",),
}
_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
}


@dataclass(frozen=True)
class ClipPlan:
    """What one good clip shall be.

    `utterances` are indices into the cast, joined by a pause. `tape_speed` plays them faster and
    higher or slower and lower. `degradation` names one of DEGRADATIONS, or is empty.
    """

    index: int
    id: str
    source: str
    codec: str
    text: str
    speaker: str
    utterances: tuple[int, ...]
    tape_speed: float
    audio_hz: int
    channels: int
    degradation: str


@dataclass(frozen=True)
class Clip:
    """A rendered clip: its plan, its encoded audio and its length."""

    plan: ClipPlan
    audio: bytes
    seconds: float

    @property
    def file_name(self) -> str:
        return f"{self.plan.id}.{self.plan.codec}"

    def manifest_entry(self) -> dict[str, Any]:
        """Return the fields that the demo's manifest and tars state of a clip."""
        return {
            "id": self.plan.id,
            "text": self.plan.text,
            "speaker": self.plan.speaker,
            "duration": round(self.seconds, 3),
        }


def plan_clips(
    utterances: list[Utterance], seconds: list[float], num_clips: int, rng: np.random.Generator
) -> list[ClipPlan]:
    """Decide on every clip from the cast and the `seconds` that each utterance takes."""
    plans = []
    order: list[int] = []
    for index in range(num_clips):
        order = order or [int(place) for place in rng.permutation(len(utterances))]
        parts = (order.pop(),)
        if index % _PAIR_EVERY == _PAIR_EVERY - 1:
            parts = _pair(parts[0], utterances, seconds, rng)
        plans.append(_plan_clip(index, parts, utterances, seconds, rng))
    return plans


def _pair(
    first: int, utterances: list[Utterance], seconds: list[float], rng: np.random.Generator
) -> tuple[int, ...]:
    """Add another sentence of the same voice, so that the sum is near a length of 8 to 15 s."""
    longest = MAX_SECONDS * min(_TAPE_SPEEDS) - seconds[first] - _PAUSE_SECONDS
    fitting = [
        place
        for place, utterance in enumerate(utterances)
        if place != first
        and utterance.voice == utterances[first].voice
        and seconds[place] <= longest
    ]
    if not fitting:
        return (first,)
    wanted = float(rng.uniform(8.0, MAX_SECONDS)) - seconds[first] - _PAUSE_SECONDS
    return first, min(fitting, key=lambda place: abs(seconds[place] - wanted))


def _plan_clip(
    index: int,
    parts: tuple[int, ...],
    utterances: list[Utterance],
    seconds: list[float],
    rng: np.random.Generator,
) -> ClipPlan:
    source = _SOURCES[index % len(_SOURCES)]
    codecs = _CODECS[source]
    codec = codecs[index // len(_SOURCES) % len(codecs)]
    degraded = index % _DEGRADED_EVERY == _DEGRADED_EVERY - 1
    kinds = list(DEGRADATIONS)
    narrow = index % _NARROW_EVERY == 5
    length = sum(seconds[part] for part in parts) + _PAUSE_SECONDS * (len(parts) - 1)
    return ClipPlan(
        index=index,
        id=f"koe-{index:05d}",
        source=source,
        codec=codec,
        text="".join(utterances[part].text for part in parts),
        speaker=utterances[parts[0]].voice.name,
        utterances=parts,
        tape_speed=_tape_speed(length, len(parts) == 1, rng),
        audio_hz=8_000
        if narrow
        else int(rng.choice(_OPUS_RATES_HZ if codec == "opus" else _RATES_HZ)),
        channels=2 if index % _STEREO_EVERY == 1 else 1,
        degradation=kinds[index // _DEGRADED_EVERY % len(kinds)] if degraded else "",
    )


def _tape_speed(seconds: float, cheap: bool, rng: np.random.Generator) -> float:
    """Choose a speed that keeps the clip within its bounds.

    `cheap` asks for one of those that cost the scorer the fewest windows. It keeps the demo
    short: a length drawn blindly takes 3.7 windows on average.
    """
    windows = {
        speed: dnsmos_windows(seconds / speed)
        for speed in _TAPE_SPEEDS
        if MIN_SECONDS <= seconds / speed <= MAX_SECONDS
    }
    fewest = min(windows.values())
    return float(rng.choice([speed for speed in windows if not cheap or windows[speed] == fewest]))


def dnsmos_windows(seconds: float) -> int:
    """Count the windows that DNSMOS P.835 scores of a clip (speechmos `dnsmos.py`)."""
    while seconds < 9.01:
        seconds += seconds
    # from the eighth window on the reference truncates one sample and skips the window
    return min(int(int(seconds) - 9.01) + 1, 7)


def closing_pause_seconds(seconds: float) -> float:
    """Return the silence after the voice that takes a clip to a length cheap to score, if short.

    Just over 9.01 s divided by a power of two, the scorer's doubled clip holds one window, not
    seven; a pause of up to a second is natural.
    """
    for cheap in _CHEAP_SECONDS:
        if 0 < cheap - seconds <= _LONGEST_CLOSING_SECONDS:
            fewer = dnsmos_windows(cheap) < dnsmos_windows(seconds)
            return cheap - seconds if fewer else 0.0
    return 0.0


def render(plan: ClipPlan, utterances: list[np.ndarray], seed: int) -> Clip:
    """Join, resample, spoil and encode one clip.

    `utterances`: those of the plan, float32 [samples] at SYNTHESIS_HZ.
    """
    rng = np.random.default_rng([seed, plan.index])
    pause = np.zeros(int(_PAUSE_SECONDS * SYNTHESIS_HZ), np.float32)
    pieces = [utterances[0]]
    for utterance in utterances[1:]:
        pieces += [pause, utterance]
    voice_seconds = sum(map(len, pieces)) / SYNTHESIS_HZ / plan.tape_speed
    closing = closing_pause_seconds(voice_seconds) * plan.tape_speed
    pieces.append(np.zeros(int(closing * SYNTHESIS_HZ), np.float32))
    audio = torchaudio.functional.resample(
        torch.from_numpy(np.concatenate(pieces)),
        round(SYNTHESIS_HZ * plan.tape_speed),
        plan.audio_hz,
    ).numpy()
    audio = audio * np.float32(rng.uniform(0.3, 0.8))
    if plan.degradation:
        audio = DEGRADATIONS[plan.degradation](audio, plan.audio_hz, rng)
    audio = audio / max(1.0, float(np.abs(audio).max()) / 0.99)
    if plan.channels == 2:  # the voice stands a little to the left
        audio = np.stack([audio, audio * 0.7], axis=1)
    encoded = encode(audio, plan.audio_hz, plan.codec, plan.index)
    return Clip(plan, encoded, len(audio) / plan.audio_hz)


def encode(audio: np.ndarray, audio_hz: int, codec: str, serial: int = 0) -> bytes:
    """Write audio [samples] or [samples, channels] as wav, flac, mp3 or opus.

    libsndfile draws Ogg stream serials at random; `serial` replaces them, so that the same audio
    always gives the same bytes.
    """
    container, subtype = _FORMATS[codec]
    file = io.BytesIO()
    soundfile.write(file, audio, audio_hz, format=container, subtype=subtype)
    data = file.getvalue()
    return pin_serial(data, serial) if codec == "opus" else data
