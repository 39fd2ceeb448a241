"""Rich renderings of `koe inspect`: the documents of a row, and what became of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from koe.printable import escape_control_characters
from koe.schema import QUARANTINED, REJECTED, SPEECH
from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, unflatten_codes
from pipeline.trace.document import Document, named_ids, num_frames, turns
from pipeline.trace.outcomes import KEPT, PENDING
from pipeline.trace.record import RecordTrace, StageOutcome

Decode = Callable[[list[int]], str]
_BORDERS = {SPEECH: "blue"}  # text is green
_OUTCOME_STYLES = {KEPT: "green", REJECTED: "yellow", QUARANTINED: "red", PENDING: "dim"}
_LABEL_WIDTH = 10
_MAX_CODES = 3  # shown of each codebook: three of them fit one line of 80 columns


def documents_view(documents: Sequence[Document], decode_text: Decode, raw: bool) -> RenderableType:
    """Render the documents of a row, one panel each: blue for speech, green for text."""
    panels: list[RenderableType] = []
    for number, document in enumerate(documents):
        head = f"{document.modality}, {len(document.input_ids):,} tokens, unit {document.unit}"
        lines = [("", _printable(head, "dim"))]
        if raw:
            lines.append(("ids", Text(" ".join(named_ids(document.input_ids)))))
        else:
            lines += _spoken(document, decode_text)
            lines += _codes(document.codes) + _clip(document.clip)
        part = f"  part {document.part}" if document.part else ""
        panels.append(_panel(f"{number}  {document.id}{part}", document.modality, lines))
    return Group(*panels)


def records_view(records: Sequence[RecordTrace], decode_text: Decode) -> RenderableType:
    """Render what each stage did with the records, one panel per record."""
    panels: list[RenderableType] = []
    for record in records:
        clip = record.clip or {}
        lines = [("", _printable(f"{record.modality}, unit {record.unit}", "dim"))]
        if record.modality == SPEECH:
            lines += [("transcript", _printable(clip["text"]))] if clip else []
            lines += _clip(clip) + _codes(record.codes)
        else:
            lines += _spoken(record.document, decode_text)
        if record.input_ids is not None:
            lines.append(("tokens", Text(f"{len(record.input_ids):,}")))
        lines += [line for outcome in record.stages for line in _outcome(outcome)]
        for place in record.places:
            part = f", part {place.part}" if len(record.places) > 1 else ""
            where = f"{place.shard}:{place.row}, document {place.document}{part}"
            lines.append(("in", Text(where, style="bold")))
        panels.append(_panel(record.id, record.modality, lines))
    return Group(*panels)


def _printable(text: str, style: str = "") -> Text:
    return Text(escape_control_characters(text), style=style)


def _panel(title: str, modality: str, lines: Iterable[tuple[str, Text]]) -> Panel:
    body = Table.grid(padding=(0, 2, 0, 0))
    body.add_column(style="dim", width=_LABEL_WIDTH, no_wrap=True)
    body.add_column(overflow="fold")
    for label, text in lines:
        body.add_row(label, text)
    return Panel(
        body,
        title=_printable(title),
        title_align="left",
        border_style=_BORDERS.get(modality, "green"),
    )


def _spoken(document: Document, decode_text: Decode) -> list[tuple[str, Text]]:
    """Show who says what; the prompt of speech is its transcript."""
    is_speech = document.modality == SPEECH
    return [
        ("transcript" if is_speech else role or "...", _printable(decode_text(run).rstrip("\n")))
        for role, run in turns(document.input_ids)
    ]


def _codes(codes: np.ndarray | None) -> list[tuple[str, Text]]:
    if codes is None:
        return []
    frames = num_frames(codes)
    heads = "  ".join(
        f"c{level} {' '.join(map(str, book[:_MAX_CODES]))}"
        + ("…" if len(book) > _MAX_CODES else "")
        for level, book in enumerate(unflatten_codes(codes))
    )
    length = f"{frames} frames, {frames * FRAME_SAMPLES / CODEC_HZ:.2f} s"
    return [("codes", Text(length)), ("", Text(heads))]


def _clip(clip: dict[str, Any] | None) -> list[tuple[str, Text]]:
    """Show a clip's format, the scores that it has, and where its audio is stored."""
    if not clip:
        return []
    channels = f"{clip['channels']} channel" + "s" * (clip["channels"] > 1)
    if clip.get("channel") is not None:
        channels = f"channel {clip['channel']} of {clip['channels']}"
    speaker = f", speaker {clip['speaker']}" if clip["speaker"] else ""
    about = f"{clip['seconds']:.2f} s, {clip['audio_hz']} Hz, {channels}{speaker}"
    lines = [("clip", _printable(about))]
    if "ovrl" in clip:
        names = [name for name in ("sig", "bak", "ovrl", "p808") if clip[name] is not None]
        scores = "  ".join(f"{name} {clip[name]:.3f}" for name in names)
        windows = f"{clip['windows']} window" + "s" * (clip["windows"] > 1)
        lines.append(("scores", Text(f"{scores}  over {windows}")))
    member = f" {clip['audio_member']}" if clip["audio_member"] else ""
    place = {"parquet": " row", "tar": " at byte"}.get(clip["audio_kind"])
    offset = f"{place} {clip['audio_offset']}" if place else ""
    start = f" from {clip['start_seconds']:.2f} s" if clip["start_seconds"] else ""
    return [*lines, ("audio", _printable(f"{clip['audio_path']}{member}{offset}{start}"))]


def _outcome(outcome: StageOutcome) -> list[tuple[str, Text]]:
    text = Text(outcome.outcome, style=_OUTCOME_STYLES[outcome.outcome])
    why = ": ".join(part for part in (outcome.reason, outcome.detail) if part)
    if why:
        text.append(f"  {escape_control_characters(why)}")
    where = [("at", _printable(outcome.location, "dim"))] if outcome.location else []
    return [(outcome.stage, text), *where]
