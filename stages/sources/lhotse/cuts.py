"""Lhotse's cuts: the clip that each supervision of a cut is, and the recording that holds it.

The fields are those of `lhotse.MonoCut`, `MultiCut`, `SupervisionSegment` and `Recording`, version
1.33, as their `to_dict` writes them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from koe.errors import BadRecord
from stages.audio.decode import SEGMENT_TOLERANCE_SECONDS

CLIPS, SPEAKERS_AND_TEXT = "clips", "speakers_and_text"


@dataclass(frozen=True)
class CutClip:
    """One record of a cut: the fields of a supervision, and the part of the recording it is.

    `start_seconds` counts from the start of the recording. `channels` are the recording's own
    numbers; None for all. `bad` says why it is no clip.
    """

    id: str
    fields: dict[str, Any]
    start_seconds: float = 0.0
    seconds: float = 0.0
    channels: tuple[int, ...] | None = None
    bad: BadRecord | None = None


def clips_of(cut: dict[str, Any], supervisions: str) -> list[CutClip]:
    """List the records of a cut: one for each supervision, and one for a cut that has none.

    With `speakers_and_text`, the supervisions with a speaker are clips, and the others give them
    their text; one whose middle lies in no clip is a record without a speaker.
    """
    cut_id = str(cut.get("id"))
    found = cut.get("supervisions") or []
    if "tracks" in cut or cut.get("type") not in (None, "MonoCut", "MultiCut", "Cut"):
        detail = f"a {cut.get('type')} is made while it is read; write it with save_audios() first"
        return [CutClip(cut_id, {}, bad=BadRecord("unsupported_cut", detail))]
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        bad = BadRecord("broken_json", "supervisions is no list of objects")
        return [CutClip(cut_id, {}, bad=bad)]
    if not found:
        bad = BadRecord("missing_transcript", "the cut has no supervisions")
        return [CutClip(cut_id, {}, bad=bad)]
    strays: list[dict[str, Any]] = []
    if supervisions == SPEAKERS_AND_TEXT:
        found, strays = _joined(found)
    clips = [_clip(cut, part, place) for place, part in enumerate([*found, *strays])]
    bad = BadRecord("missing_speaker", "the middle of the text lies in no part with a speaker")
    return [*clips[: len(found)], *(replace(clip, bad=bad) for clip in clips[len(found) :])]


def _joined(parts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give each part with a speaker the text of those without one whose middle it holds.

    Returns the parts with a speaker, and those that no such part holds; both in order of time. A
    part that has a text of its own keeps it.
    """
    parts = sorted(parts, key=lambda part: _number(part.get("start")) or 0.0)
    speakers = [part for part in parts if part.get("speaker")]
    texts: list[list[str]] = [[] for _ in speakers]
    strays: list[dict[str, Any]] = []
    for piece in parts:
        if piece.get("speaker"):
            continue
        holder = next((i for i, part in enumerate(speakers) if _holds(part, piece)), None)
        if holder is None:
            strays.append(piece)
        else:
            texts[holder].append(str(piece.get("text") or ""))
    joined = [
        {**part, "text": part.get("text") or "".join(pieces).strip()}
        for part, pieces in zip(speakers, texts, strict=True)
    ]
    return joined, strays


def _holds(segment: dict[str, Any], piece: dict[str, Any]) -> bool:
    values = [
        _number(part.get(name)) for part in (segment, piece) for name in ("start", "duration")
    ]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return False
    start, length, piece_start, piece_length = numbers
    return 0 <= piece_start + piece_length / 2 - start <= length


def _clip(cut: dict[str, Any], part: dict[str, Any], place: int) -> CutClip:
    cut_id, own_id = str(cut.get("id")), part.get("id")
    part_id = f"{cut_id}#{place}" if own_id in (None, "") else str(own_id)
    fields = {key: value for key, value in part.items() if key not in ("start", "duration")}
    fields["cut"] = {key: value for key, value in cut.items() if key != "supervisions"}
    fields["id_in_cut"] = f"{cut_id}/{part_id}"
    if part.get("speaker"):
        fields["speaker_in_cut"] = f"{cut_id}/{part['speaker']}"
    try:
        start, seconds = _range(cut, part)
        channels = _channels(cut, part)
    except BadRecord as bad:
        return CutClip(part_id, fields, bad=bad)
    return CutClip(part_id, fields, start, seconds, channels)


def _range(cut: dict[str, Any], part: dict[str, Any]) -> tuple[float, float]:
    """Return start and length in the recording of a supervision, whose start is that in its cut."""
    names = ("start", "duration")
    values = [_number(of.get(name)) for of in (cut, part) for name in names]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        raise BadRecord(
            "bad_segment",
            f"start and duration are {[part.get(name) for name in names]}, "
            f"those of the cut {[cut.get(name) for name in names]}",
        )
    cut_start, cut_seconds, start, seconds = numbers
    stop = start + seconds
    latest = cut_seconds + SEGMENT_TOLERANCE_SECONDS
    if seconds <= 0 or start < -SEGMENT_TOLERANCE_SECONDS or stop > latest or start >= cut_seconds:
        detail = f"{start:.3f} s to {stop:.3f} s of a cut of {cut_seconds:.3f} s"
        raise BadRecord("bad_segment", detail)
    start, stop = max(start, 0.0), min(stop, cut_seconds)
    # to the nanosecond, since 2.3 - 1.2 is not 1.1 in floating point, and may hold a sample less
    return round(cut_start + start, 9), round(stop - start, 9)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _channels(cut: dict[str, Any], part: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the channels of a supervision; those of a cut of one channel are the cut's."""
    of_cut, own = cut.get("channel"), part.get("channel")
    wanted = of_cut if own is None or _is_index(of_cut) else own
    if wanted is None:
        return None
    listed = wanted if isinstance(wanted, list) else [wanted]
    if not listed or not all(map(_is_index, listed)):
        raise BadRecord("bad_channel", f"channel is {wanted!r}")
    return tuple(listed)


def _held(source: dict[str, Any]) -> tuple[int, ...]:
    """Return the numbers of the channels of a source, which are those of the recording."""
    channels = source.get("channels") or [0]
    if not isinstance(channels, list) or not all(map(_is_index, channels)):
        raise BadRecord("broken_json", f"channels of the recording's source is {channels!r:.200}")
    return tuple(channels)


def source_of(
    recording: dict[str, Any], wanted: tuple[int, ...] | None
) -> tuple[dict[str, Any], int | None]:
    """Return the source that holds the channels, and which of its own channels is meant.

    None for that channel: the average of all, or the only one.

    Raises: BadRecord bad_channel, unsupported_recording or broken_json.
    """
    sources = recording.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise BadRecord("broken_json", "the recording has no list of sources")
    if changes := recording.get("transforms"):
        detail = f"it is to be changed while it is read: {json.dumps(changes):.200}"
        raise BadRecord("unsupported_recording", detail)
    held = [_held(source) for source in sources]
    for source, channels in zip(sources, held, strict=True):
        if wanted is None or set(wanted) <= set(channels):
            if wanted is None and len(sources) > 1:
                break
            if wanted is None or len(channels) == 1 or set(wanted) == set(channels):
                return source, None
            if len(wanted) == 1:
                return source, channels.index(wanted[0])
    listed = ", ".join(str(list(channels)) for channels in held)
    what = "all channels" if wanted is None else f"channels {list(wanted)}"
    raise BadRecord(
        "bad_channel", f"{what} of files with {listed}: a clip is one channel or all of one file"
    )
