"""Rich renderings of single files, training metrics and replays."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from koe.numbers import UNKNOWN
from koe.printable import escape_control_characters, shorten
from pipeline.terminal.tables import grid, titled

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.replay import Replay

_MAX_NAME = 120  # characters of a document or source of a corpus
_MAX_CODES = 8  # shown of each codebook


def files_view(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Render `koe score` and `koe encode`: a table, and below it what cannot be read, and why.

    A folder that all of several files share is the title of the table.
    """
    good = [row for row in rows if "error" not in row]
    folders = {os.path.dirname(row["path"]) for row in good}
    folder = f"{folders.pop()}/" if len(good) > 1 and len(folders) == 1 else ""
    folder = "" if folder == "/" else folder
    failed = [Text(f"{row['path']}: {row['error']}", "red") for row in rows if "error" in row]
    columns = list(dict.fromkeys(key for row in good for key in row))
    table = grid(folder, *columns, left=["codes"], fold=["path"])
    for row in good:
        shown = row | {"path": row["path"].removeprefix(folder)}
        table.add_row(*(_cell(shown.get(column)) for column in columns))
    return Group(*([titled(table)] if good else []), *failed)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    if isinstance(value, list):  # three codebooks
        codebooks = (
            " ".join(map(str, book[:_MAX_CODES])) + " ..." * (len(book) > _MAX_CODES)
            for book in value
        )
        return Text("\n".join(codebooks))
    return Text(str(value))


def training_view(metrics: Sequence[dict[str, Any]]) -> RenderableType:
    """Render the last steps of a training run."""
    columns = ("step", "loss", "text", "speech", "gradient norm", "rate", "tokens/s", "guard")
    table = grid("Training, last steps", *columns)
    for row in metrics:
        by_modality = row.get("loss_by_modality")
        losses = by_modality if isinstance(by_modality, dict) else {}
        action = str(row.get("action"))
        table.add_row(
            str(row.get("step")),
            _logged(row.get("loss")),
            *(_logged(losses.get(name)) for name in ("text", "speech")),
            _logged(row.get("gradient_norm"), "{:,.3f}"),
            _logged(row.get("learning_rate"), "{:.2e}"),
            _logged(row.get("tokens_per_second"), "{:,.0f}"),
            "" if action == "accept" else action,
        )
    return titled(table)


def replay_view(replay: Replay, most: int = 30) -> RenderableType:
    """Render a step that was run again: its numbers, and the documents of the highest loss."""
    event = replay.event
    steps = event["step"] - replay.weights_step
    head = Text(
        f"{event['id']} {event['event']} at step {event['step']}: {event.get('reason')}\n"
        f"logged  loss {_logged(event.get('loss'))}  gradient norm "
        f"{_logged(event.get('gradient_norm'))}\n"
        f"again   loss {replay.loss:.4f}  gradient norm {replay.gradient_norm:.4f}, with the "
        f"weights of step {replay.weights_step}" + (f" ({steps} before)" if steps else "")
    )
    table = grid(
        "Documents, the highest loss first", "document", "source", "modality", "row",
        "norm of row", "tokens", "loss", left=["source", "modality"], fold=["document"],
    )  # fmt: skip
    for document in replay.documents[:most]:
        table.add_row(
            Text(escape_control_characters(shorten(document.id, _MAX_NAME))),
            Text(escape_control_characters(shorten(document.source, _MAX_NAME))),
            document.modality,
            str(document.row),
            f"{replay.row_gradient_norms[document.row]:.4f}",
            f"{document.tokens:,}",
            _logged(document.loss),
        )
    left = len(replay.documents) - most
    return Group(head, titled(table), *([Text(f"and {left} more")] if left > 0 else []))


def rate_view(found: dict[str, Any], most: int = 24) -> RenderableType:
    """Render what a learning-rate range test found: some of its steps, and the safe rate."""
    table = grid("", "learning rate", "loss", "smoothed", "gradient norm")
    points = found["points"]
    for point in points[:: -(-len(points) // most) or 1]:
        table.add_row(
            f"{point['rate']:.2e}", f"{point['loss']:.4f}", f"{point['smoothed']:.4f}",
            f"{point['gradient_norm']:.3g}",
        )  # fmt: skip
    ended = f"because {found['stopped']}" if found["stopped"] else "at its highest rate"
    lines = [f"the test ended {ended}"]
    if found["safe_rate"] is None:
        lines.append(f"no safe rate: {found['reason']}")
    else:
        lines += [
            f"the smoothed loss fell fastest at {found['steepest_rate']:.2e}, and began to rise at "
            f"{found['rising_rate']:.2e}",
            f"a safe train.learning_rate is {found['safe_rate']:.2e} (now "
            f"{found['learning_rate']:.2e}): {found['reason']}",
        ]
    return Group(*([titled(table)] if points else []), Text("\n".join(lines)))


def _logged(value: Any, form: str = "{:,.4f}") -> str:
    """Write a number of a log, which holds NaN and infinities as words and may lack any of them."""
    if isinstance(value, str):
        return value
    is_finite = isinstance(value, int | float) and math.isfinite(value)
    return form.format(value) if is_finite else UNKNOWN
