"""The table of clips to hear: facts, players and spectrograms."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

from koe.webpage import escape
from pipeline.report.clips import ShownClip, Sound
from pipeline.report.survey import BEST, BORDERLINE, FASTEST, LONGEST, SLOWEST, WORST

MAX_SOUND_BYTES = 6_500_000  # base64 adds a third; with plotly.js the page stays below 15 MB
TOO_LARGE = "left out to keep the page small: ask for fewer clips"
ALL = "all"
NAMES = {
    BORDERLINE: "Borderline",
    WORST: "Worst",
    BEST: "Best",
    FASTEST: "Fastest speech",
    SLOWEST: "Slowest speech",
    LONGEST: "Longest",
    ALL: "All",
}


def clips(shown: Sequence[ShownClip], threshold: float, codec: str) -> str:
    """List clips with players and spectrograms; `codec` (HTML) heads the reconstructions."""
    if not shown:
        return ""
    left = MAX_SOUND_BYTES
    rows = []
    for clip in shown:
        cells = [f"<td>{_facts(clip)}</td>"]
        for sound, what in ((clip.original, "Original"), (clip.reconstruction, "Reconstruction")):
            size = len(sound.mp3) + len(sound.png)
            fits = size <= left
            left -= size if fits else 0
            shown_sound = _sound(sound if fits else Sound(TOO_LARGE), what, clip)
            cells.append(f'<td data-name="{what}">{shown_sound}</td>')
        rows.append(f'<tr data-kind="{clip.kind}">{"".join(cells)}</tr>')
    heads = ("Clip", "Original", f"Reconstruction, {codec}")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="controls" role="group" aria-label="Kind of clip">{_buttons(shown, threshold)}'
        f'</div><table class="clips" aria-label="Clips to hear"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _buttons(shown: Sequence[ShownClip], threshold: float) -> str:
    numbers = Counter(clip.kind for clip in shown)
    names = NAMES | {BORDERLINE: f"{NAMES[BORDERLINE]}: nearest to {threshold:g}"}
    return "".join(
        f'<button data-kind="{kind}" aria-pressed="false">{names[kind]} <small>{number}</small>'
        "</button>"
        for kind, number in [*numbers.items(), (ALL, len(shown))]
    )


def _facts(clip: ShownClip) -> str:
    row = clip.clip
    rate = len(row["text"]) / row["seconds"] if row["seconds"] else 0.0
    scores = " \u00b7 ".join(
        f"{name} {row[name]:.3f}"
        for name in ("ovrl", "sig", "bak", "p808")
        if row.get(name) is not None
    )
    about = " \u00b7 ".join(
        (
            f"{row['seconds']:.1f} s",
            f"{rate:.1f} characters/s",
            f"{row['audio_hz'] / 1000:g} kHz",
            escape(row["source"]),
        )
    )
    number, unit = _headline(clip.kind, row, rate)
    return (
        f'<div class="score">{number} <small>{unit} \u00b7 {NAMES[clip.kind]}</small></div>'
        f'<div class="outcome {clip.outcome.outcome}">{escape(clip.outcome.outcome)}</div>'
        f'<div class="facts">{escape(clip.outcome.why)}</div><div class="transcript" dir="auto" '
        f'title="{escape(row["text"])}">{escape(row["text"])}</div><div class="facts">{scores}<br>'
        f"{about}<br><code>{escape(row['id'])}</code></div>"
    )


def _headline(kind: str, row: dict[str, Any], rate: float) -> tuple[str, str]:
    """Return number and unit of what a clip was chosen for."""
    if kind in (FASTEST, SLOWEST):
        return f"{rate:.2f}", "characters/s"
    if kind == LONGEST:
        return f"{row['seconds']:.1f}", "s"
    return f"{row['ovrl']:.3f}", "ovrl"


def _sound(sound: Sound, what: str, clip: ShownClip) -> str:
    if not sound.mp3:
        return f'<div class="absent"><b>No {what.lower()}</b><br>{escape(sound.note)}</div>'
    picture, audio = (base64.b64encode(data).decode() for data in (sound.png, sound.mp3))
    name = escape(f"{what} of {clip.clip['id']}")
    length = f"{clip.clip['seconds']:.1f} s" if not sound.note else escape(sound.note)
    return (
        f'<div class="sound"><img alt="Spectrogram: {name}" src="data:image/png;base64,{picture}">'
        f'<i></i><span class="top">12 kHz</span><span class="bottom">0 Hz</span>'
        f'<span class="bottom right">{length}</span></div><audio controls preload="metadata" '
        f'aria-label="{name}" src="data:audio/mpeg;base64,{audio}"></audio>'
    )
