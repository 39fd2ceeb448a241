"""One shard row decoded: its documents with text, codes, and the clips they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import last_stage_with
from koe.errors import ConfigError, ContractError
from koe.printable import shorten_list
from koe.schema import ENCODED, ROW, SPEECH
from koe.vocabulary import (
    END_OF_AI,
    END_OF_HUMAN,
    FIRST_AUDIO,
    NAMES,
    NUM_BASE_TEXT,
    SLOTS,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_SPEECH,
    codes_of,
    split_speech_ids,
)
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from pipeline.trace.outcomes import rows_with_id

SHARD_SUFFIX = ".arrow"
_DOCUMENT_FIELDS = ("lengths", "ids", "sources", "modalities", "units", "parts")
USER, ASSISTANT = "user", "assistant"
_OPENED_BY = {START_OF_HUMAN: USER, START_OF_AI: ASSISTANT}
_CLOSED_BY = {END_OF_HUMAN: USER, END_OF_AI: ASSISTANT}


@dataclass(frozen=True)
class Document:
    """A document of a row. `codes` (uint16 [7 frames]) and `clip` are None for text."""

    id: str
    source: str
    modality: str
    unit: str
    part: int
    input_ids: np.ndarray
    codes: np.ndarray | None
    clip: dict[str, Any] | None


@dataclass(frozen=True)
class Shard:
    """A shard's name and rows (ROW), and the ledger of the run that its clips are traced in."""

    name: str
    rows: pa.Table
    ledger: Ledger


def split_place(argument: str) -> tuple[str, int]:
    """Split NAME:ROW; the row is 0 where none is given."""
    name, colon, row = argument.rpartition(":")
    return (name, int(row)) if colon and row.isdecimal() else (argument, 0)


def find_shard(name: str, run_dir: str) -> Shard | None:
    """Open a shard of the run by its name, or any shard by its path or URL.

    None where there is none, and the name may be a record's id. The clips of a file that is not in
    a folder `shards` are traced in the run of `run_dir`.
    Raises: ConfigError for an Arrow file that is not a shard, or a name that can only be a shard's.
    """
    run = Ledger(Storage(run_dir))
    path = _file_named(name)
    if path is not None:
        folder, _, file = path.rpartition("/")
        folder = folder or "/"
        root, _, parent = folder.rpartition("/")
        ledger = Ledger(Storage(root)) if parent == "shards" else run
        return Shard(file, _require_rows(Storage(folder).read_table(file), name), ledger)
    known = [file for file in run.storage.names("shards") if file.endswith(SHARD_SUFFIX)]
    file = name.removeprefix("shards/").removesuffix(SHARD_SUFFIX) + SHARD_SUFFIX
    if file in known:
        rows = run.storage.read_table(f"shards/{file}")
        return Shard(file, _require_rows(rows, name), run)
    if "/" in name or "#" in name:  # may be the id of a record, SOURCE/..., or UNIT#ROW
        return None
    raise ConfigError(
        f"there is no shard {name}",
        f"{run_dir}/shards holds {shorten_list(known, name)}",
        "Write SHARD:ROW, as in train-00000:12, the complete id of a record, SOURCE/..., or UNIT#ROW.",
    )


def _file_named(name: str) -> str | None:
    """Return the URL or the absolute path of an Arrow file; None where there is none."""
    if not name.endswith(SHARD_SUFFIX):
        return None
    if "://" in name:
        folder, _, file = name.rpartition("/")
        return None if Storage(folder).size(file) is None else name
    return str(Path(name).resolve()) if Path(name).is_file() else None


def _require_rows(table: pa.Table, name: str) -> pa.Table:
    missing = [column for column in ROW.names if column not in table.column_names]
    if missing:
        raise ConfigError(
            f"{name} is not a shard",
            f"it has no column {', '.join(missing)}",
            "Name a file of a run's folder shards.",
        )
    return table


def documents_of(shard: Shard, row: int) -> list[Document]:
    """Take a row apart, and trace every speech document to its clip.

    Raises: ConfigError for a row that the shard does not have.
    """
    table = shard.rows
    if not 0 <= row < table.num_rows:
        has = f"its rows are 0..{table.num_rows - 1}" if table.num_rows else "it is empty"
        raise ConfigError(f"{shard.name} has no row {row}", has, "Name one of its rows.")
    ids = table["input_ids"][row].values.to_numpy()
    columns = (table[f"document_{name}"][row].as_py() for name in _DOCUMENT_FIELDS)
    documents, begin = [], 0
    for length, id, source, modality, unit, part in zip(*columns, strict=True):
        piece = ids[begin : begin + length]
        begin += length
        codes, clip = None, None
        if modality == SPEECH:
            codes, clip = speech_codes(piece), trace_clip(shard.ledger, unit, id)
        documents.append(Document(id, source, modality, unit, part, piece, codes, clip))
    return documents


def speech_codes(ids: np.ndarray) -> np.ndarray:
    """Return the SNAC codes (uint16 [7 frames]) of a speech document or of a part of one."""
    try:
        return split_speech_ids(ids)[1]
    except ContractError:
        starts = np.flatnonzero(ids == START_OF_SPEECH)
        first = int(starts[0]) + 1 if len(starts) else 0
        audio = ids[first:][ids[first:] >= FIRST_AUDIO]
        return codes_of(audio)


def trace_clip(ledger: Ledger, unit: str, id: str) -> dict[str, Any] | None:
    """Find the clip row (text, scores, where its audio lies) of a speech document."""
    receipt = ledger.receipt(last_stage_with("codes"), unit)
    if receipt is None:
        return None
    columns = [name for name in ENCODED.names if name != "codes"]
    return next(rows_with_id(ledger.storage, receipt.output.path, columns, id), None)


def named_ids(ids: np.ndarray) -> list[str]:
    """Spell out token ids: names of special ids, slot and code of audio, numbers of text."""
    spelled = []
    for value in ids.tolist():
        if value in NAMES:
            spelled.append(f"<{NAMES[value]}>")
        elif value >= FIRST_AUDIO:
            slot, code = divmod(value - FIRST_AUDIO, 4096)
            spelled.append(f"<audio {slot}:{code}>")
        else:
            spelled.append(str(value))
    return spelled


def turns(ids: np.ndarray) -> list[tuple[str, list[int]]]:
    """Cut a document into turns: who speaks, and the plain text ids.

    A later part of a document may begin or end within a turn: whose it is shows in the mark that
    closes it, and is the empty string where no mark tells.
    """
    found: list[tuple[str, list[int]]] = []
    role, run = "", []
    for value in ids.tolist():
        if value < NUM_BASE_TEXT:
            run.append(value)
        elif value in _OPENED_BY or value in _CLOSED_BY:
            if run:
                found.append((role or _CLOSED_BY.get(value, ""), run))
            role, run = _OPENED_BY.get(value, ""), []
    return [*found, (role, run)] if run else found


def num_frames(codes: np.ndarray | None) -> int:
    return 0 if codes is None else len(codes) // SLOTS


def document_json(
    document: Document, decode_text: Callable[[list[int]], str], raw: bool
) -> dict[str, Any]:
    """Describe a document for `koe inspect --json`; `raw` adds its ids, spelled out.

    `turns` are those of text; of speech, `text` is the prompt and `clip` the row of its clip.
    """
    spoken = [(role, decode_text(run)) for role, run in turns(document.input_ids)]
    shown: dict[str, Any] = {
        "id": document.id,
        "source": document.source,
        "modality": document.modality,
        "unit": document.unit,
        "part": document.part,
        "tokens": len(document.input_ids),
        "frames": num_frames(document.codes),
        "text": "\n".join(text for _, text in spoken),
    }
    if document.modality == SPEECH:
        shown["clip"] = document.clip
    else:
        shown["turns"] = [{"role": role or None, "text": text} for role, text in spoken]
    return shown | ({"ids": named_ids(document.input_ids)} if raw else {})
