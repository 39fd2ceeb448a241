"""Paths of the real recordings and texts in `tests/data`; its README names sources and licences."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
UTTERANCES = DATA / "utterances"  # metadata.jsonl is a manifest of 12 clips
WORDS = DATA / "words"  # with metadata.jsonl of 9 words
NOISY = DATA / "noisy"
TEXT = DATA / "text"
EXTENSIONS = (".flac", ".mp3", ".opus", ".wav")


def recordings() -> list[Path]:
    """Return every audio file: FLAC, MP3, Opus and WAV, 8 to 48 kHz, clean and noisy."""
    return sorted(path for path in DATA.rglob("*") if path.suffix in EXTENSIONS)
