"""One shard row decoded: its documents with text, codes, and the clips they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, ContractError
from pipeline.ledger import Ledger
from pipeline.schema import SPEECH
from pipeline.vocabulary import (
    FIRST_AUDIO,
    NAMES,
    NUM_BASE_TEXT,
    SLOTS,
    START_OF_SPEECH,
    codes_of,
    split_speech_ids,
)


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


def find_shard(name: str, run_dir: Path) -> tuple[Ledger, str]:
    """Locate a shard by path, file name or stem, and the ledger of the run it belongs to.

    Raises: ConfigError listing the shards there are.
    """
    from pipeline.storage import Storage

    path = Path(name)
    if path.is_file():
        return Ledger(Storage(str(path.resolve().parent.parent))), path.name
    ledger = Ledger(Storage(str(run_dir)))
    known = [n for n in ledger.storage.names("shards") if n.endswith(".arrow")]
    for candidate in (path.name, f"{path.name}.arrow"):
        if candidate in known:
            return ledger, candidate
    raise ConfigError(
        f"there is no shard {name}",
        f"{run_dir}/shards holds {', '.join(known[:5]) or 'none'}{' ...' if len(known) > 5 else ''}",
        "Name a shard as in train-00000:12.",
    )


def read_documents(ledger: Ledger, shard: str, row: int) -> list[Document]:
    """Take a row apart, and trace every speech document to its clip.

    Raises: ConfigError for a row that the shard does not have.
    """
    table = ledger.storage.read_table(f"shards/{shard}")
    if not 0 <= row < table.num_rows:
        raise ConfigError(f"{shard} has no row {row}", f"its rows are 0..{table.num_rows - 1}")
    columns = {name: table[name][row].as_py() for name in table.column_names if name != "input_ids"}
    ids = table["input_ids"][row].values.to_numpy()
    stops = np.cumsum(columns["document_lengths"])
    documents = []
    for number, stop in enumerate(stops):
        piece = ids[stop - columns["document_lengths"][number] : stop]
        id, unit = columns["document_ids"][number], columns["document_units"][number]
        modality = columns["document_modalities"][number]
        speech = modality == SPEECH
        documents.append(
            Document(
                id=id,
                source=columns["document_sources"][number],
                modality=modality,
                unit=unit,
                part=columns["document_parts"][number],
                input_ids=piece,
                codes=speech_codes(piece) if speech else None,
                clip=trace_clip(ledger, unit, id) if speech else None,
            )
        )
    return documents


def speech_codes(ids: np.ndarray) -> np.ndarray:
    """Return the SNAC codes (uint16 [7 frames]) of a whole speech document or of a part of one."""
    try:
        return split_speech_ids(ids)[1]
    except ContractError:
        starts = np.flatnonzero(ids == START_OF_SPEECH)
        first = int(starts[0]) + 1 if len(starts) else 0
        audio = ids[first:][ids[first:] >= FIRST_AUDIO]
        return codes_of(audio)


def trace_clip(ledger: Ledger, unit: str, id: str) -> dict[str, Any] | None:
    """Find the clip row (text, scores, where its audio lies) of a speech document."""
    receipt = ledger.receipt("encode", unit)
    if receipt is None:
        return None
    table = ledger.read(receipt)
    rows = [row for row, name in enumerate(table["id"].to_pylist()) if name == id]
    if not rows:
        return None
    return table.drop_columns(["codes"]).slice(rows[0], 1).to_pylist()[0]


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


def text_runs(ids: np.ndarray) -> list[list[int]]:
    """Return the runs of plain text ids between marks: prompts and answers in turn."""
    runs: list[list[int]] = [[]]
    for value in ids.tolist():
        if value < NUM_BASE_TEXT:
            runs[-1].append(value)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def num_frames(document: Document) -> int:
    return 0 if document.codes is None else len(document.codes) // SLOTS
