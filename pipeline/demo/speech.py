"""Sentences, voices and their synthesis with Open JTalk."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import resources

import numpy as np

from koe.errors import ConfigError

SYNTHESIS_HZ = 48_000


@dataclass(frozen=True)
class Voice:
    """A speaker made of the one bundled voice by its pitch and rate."""

    name: str
    half_tones: float
    speed: float


# Lower than the bundled voice, because DNSMOS falls with pitch: 3.2 at -4 half tones, 2.7 at 0,
# 2.4 at +4 on clean synthesis. So clean clips lie above a threshold of 2.5, with some near it.
VOICES = (
    Voice("aoi", -5.0, 1.00),
    Voice("haru", -4.0, 0.94),
    Voice("ichi", -4.0, 1.10),
    Voice("kei", -3.0, 1.00),
    Voice("mio", -3.0, 1.12),
    Voice("nagi", -2.0, 0.96),
    Voice("ren", -6.0, 1.05),
    Voice("sora", -2.0, 1.04),
)


@dataclass(frozen=True)
class Utterance:
    """One sentence as one voice says it."""

    text: str
    voice: Voice


def read_sentences() -> list[str]:
    """Return the sentences that ship with koe, in the order of their file."""
    lines = (
        resources.files("pipeline.demo").joinpath("sentences.txt").read_text("utf-8").splitlines()
    )
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def cast(num_utterances: int, rng: np.random.Generator) -> list[Utterance]:
    """Give the sentences to the voices in turn, at most one voice a sentence."""
    sentences = read_sentences()
    order = rng.permutation(len(sentences))[:num_utterances]
    return [
        Utterance(sentences[index], VOICES[turn % len(VOICES)]) for turn, index in enumerate(order)
    ]


def require_synthesiser() -> None:
    """Check that Open JTalk is installed, before anything is written.

    Raises: ConfigError naming the extra that brings it.
    """
    if importlib.util.find_spec("pyopenjtalk") is None:
        raise ConfigError(
            "the demo's speech cannot be synthesised",
            "the package pyopenjtalk-plus is not installed",
            "Install it with: pip install 'koe-pretrain[demo]'",
        )


def synthesise(utterance: Utterance) -> np.ndarray:
    """Speak a sentence: float32 [samples] at SYNTHESIS_HZ, peak 1.

    The synthesiser's samples reach 1.37 times the range of int16, hence the normalisation.
    """
    import pyopenjtalk  # optional dependency; loading it takes half a second

    voice = utterance.voice
    samples, audio_hz = pyopenjtalk.tts(
        utterance.text, speed=voice.speed, half_tone=voice.half_tones
    )
    if audio_hz != SYNTHESIS_HZ:
        raise ConfigError(
            f"Open JTalk synthesises at {audio_hz} Hz, not {SYNTHESIS_HZ}",
            "another voice file than the bundled one is in use",
            "Install the pinned version: pip install 'koe-pretrain[demo]'",
        )
    return (samples / np.abs(samples).max()).astype(np.float32)
