"""Rich renderings of statistics, status, proofs, documents and training metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.inspection import Document, named_ids, num_frames, text_runs
from pipeline.vocabulary import CODEC_HZ, FRAME_SAMPLES, unflatten_codes

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.replay import Replay


def grid(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def files_view(rows: Sequence[dict[str, Any]]) -> Table:
    """Render `koe score` and `koe encode`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = grid("", *columns)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    if isinstance(value, list):  # three codebooks
        return Text(
            "\n".join(" ".join(map(str, book[:12])) + " ..." * (len(book) > 12) for book in value)
        )
    return Text(str(value))


def training_view(metrics: Sequence[dict[str, Any]]) -> Table:
    """Render the last steps of a training run."""
    table = grid(
        "Training, last steps",
        "step",
        "loss",
        "text",
        "speech",
        "gradient norm",
        "rate",
        "tokens/s",
        "guard",
    )
    for row in metrics:
        by_modality = row["loss_by_modality"]
        table.add_row(
            str(row["step"]),
            _number(row["loss"], ".4f"),
            *(_number(by_modality.get(name), ".4f") for name in ("text", "speech")),
            _number(row["gradient_norm"], ".3f"),
            f"{row['learning_rate']:.2e}",
            f"{row['tokens_per_second']:,.0f}",
            "" if row["action"] == "accept" else row["action"],
        )
    return table


def replay_view(replay: Replay, most: int = 30) -> RenderableType:
    """Render a step that was run again: its numbers, and the documents of the highest loss."""
    event = replay.event
    steps = event["step"] - replay.weights_step
    head = Text(
        f"{event['id']} {event['event']} at step {event['step']}: {event['reason']}\n"
        f"logged  loss {_number(event['loss'], '.4f')}  gradient norm "
        f"{_number(event['gradient_norm'], '.4f')}\n"
        f"again   loss {replay.loss:.4f}  gradient norm {replay.gradient_norm:.4f}, with the "
        f"weights of step {replay.weights_step}" + (f" ({steps} before)" if steps else "")
    )
    table = grid(
        "Documents, the highest loss first", "document", "source", "modality", "row",
        "gradient norm of the row", "tokens", "loss",
    )  # fmt: skip
    for document in replay.documents[:most]:
        table.add_row(
            Text(document.id),
            Text(document.source),
            document.modality,
            str(document.row),
            f"{replay.row_gradient_norms[document.row]:.4f}",
            f"{document.tokens:,}",
            _number(document.loss, ".4f"),
        )
    left = len(replay.documents) - most
    return Group(head, table, Text(f"and {left} more") if left > 0 else Text(""))


def _number(value: Any, form: str) -> str:
    """Format a number of a log, in which NaN and infinities are words and None is nothing."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, form)


def documents_view(
    documents: Sequence[Document], decode_text: Callable[[list[int]], str], raw: bool
) -> RenderableType:
    """Render `koe inspect`: a panel a document, blue for speech, green for text."""
    panels: list[RenderableType] = []
    for number, document in enumerate(documents):
        lines = Text()
        if raw:
            lines.append(" ".join(named_ids(document.input_ids)))
        else:
            for turn, run in enumerate(text_runs(document.input_ids)):
                lines.append(decode_text(run) + "\n", style="bold" if turn % 2 == 0 else "")
            if document.codes is not None:
                lines.append(_codes_line(document), style="cyan")
            if document.clip is not None:
                lines.append(_clip_line(document.clip), style="dim")
        part = f" part {document.part}" if document.part else ""
        panels.append(
            Panel(
                lines,
                title=f"{number}  {document.id}{part}  {document.modality} of {document.source}  "
                f"{len(document.input_ids)} tokens  unit {document.unit}",
                title_align="left",
                border_style="blue" if document.codes is not None else "green",
            )
        )
    return Group(*panels)


def _codes_line(document: Document) -> str:
    assert document.codes is not None
    frames = num_frames(document)
    books = unflatten_codes(document.codes)
    heads = "  ".join(
        f"c{level} {' '.join(map(str, book[:6]))}{' ...' if len(book) > 6 else ''}"
        for level, book in enumerate(books)
    )
    return f"{frames} frames, {frames * FRAME_SAMPLES / CODEC_HZ:.2f} s   {heads}\n"


def _clip_line(clip: dict[str, Any]) -> str:
    member = f" member {clip['audio_member']}" if clip["audio_member"] else ""
    start = f" from {clip['start_seconds']:.2f} s" if clip["start_seconds"] else ""
    return (
        f"ovrl {clip['ovrl']:.3f} over {clip['windows']} windows   {clip['seconds']:.2f} s, "
        f"{clip['audio_hz']} Hz, {clip['channels']} channels\n"
        f"{clip['audio_path']}{member} at {clip['audio_offset']}{start}"
    )
