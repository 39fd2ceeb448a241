"""Paths of the real recordings and texts in `tests/data`; its README names sources and licences."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
UTTERANCES = DATA / "utterances"  # metadata.jsonl is a manifest of 12 clips
WORDS = DATA / "words"  # with metadata.jsonl of 9 words
NOISY = DATA / "noisy"
TEXT = DATA / "text"
REPORTS = DATA / "reports"  # files made after bug reports, most of them damaged; tests/reports
EXTENSIONS = (".flac", ".mp3", ".opus", ".wav")


def recordings() -> list[Path]:
    """Return every sound recording: FLAC, MP3, Opus and WAV, 8 to 48 kHz, clean and noisy."""
    folders = (UTTERANCES, WORDS, NOISY)
    return sorted(p for folder in folders for p in folder.iterdir() if p.suffix in EXTENSIONS)
