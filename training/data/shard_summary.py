"""What a run must know of all rows of a shard before it reads the first: two narrow columns."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from koe.arrow_files import ArrowFile
from koe.errors import ContractError
from koe.schema import ROW, SPEECH, TEXT
from training.data.stored import AGAIN, Lists, Stored, named_lists

MODALITIES = (TEXT, SPEECH)
MODALITY_BIT = {TEXT: 1, SPEECH: 2}  # of ShardSummary.modality
_COLUMNS = ("document_sources", "document_modalities")


@dataclass(frozen=True)
class ShardSummary:
    """`batch_rows`: rows of each record batch that has any; `modality`: uint8 [rows], bits by row."""

    batch_rows: tuple[int, ...]
    modality: np.ndarray
    source_modality: dict[str, str]

    def as_json(self) -> bytes:
        modality = base64.b64encode(zlib.compress(self.modality.tobytes())).decode()
        values = {
            "batch_rows": self.batch_rows,
            "modality": modality,
            "sources": self.source_modality,
        }
        return json.dumps(values).encode()


def from_json(text: bytes) -> ShardSummary | None:
    """Read what `as_json` made; None where the text is something else."""
    try:
        values = json.loads(text)
        modality = np.frombuffer(zlib.decompress(base64.b64decode(values["modality"])), np.uint8)
        found = ShardSummary(tuple(values["batch_rows"]), modality, dict(values["sources"]))
    except (ValueError, KeyError, TypeError, zlib.error):
        return None
    return found if sum(found.batch_rows) == len(modality) else None


def same(left: ShardSummary, right: ShardSummary) -> bool:
    """Tell whether two summaries say the same."""
    return left.as_json() == right.as_json()


def of_batches(parts: Sequence[Stored]) -> ShardSummary:
    """Summarise the record batches of an open shard."""
    return _joined([(part.num_rows, part.sources, part.modalities) for part in parts])


def of_file(file: Any, name: str, num_rows: int) -> ShardSummary:
    """Summarise a shard by the bytes of two columns, about 2 % of the file.

    `file`: a binary file that is read and sought in, whose bytes nothing has vouched for yet.
    Raises: ContractError when it is not what koe writes; what `file` raises.
    """
    source = pa.PythonFile(file, mode="r")
    shard = ArrowFile(source, f"shard {name}", schema=ROW, columns=_COLUMNS, remedy=AGAIN)
    found = [
        (
            batch.num_rows,
            named_lists(batch, _COLUMNS[0], np.int16),
            named_lists(batch, _COLUMNS[1], np.uint8),
        )
        for batch in shard.batches()
        if batch.num_rows
    ]
    summary = _joined(found)
    if len(summary.modality) != num_rows:
        raise ContractError(
            f"shard {name} has {len(summary.modality)} rows", f"index.json says {num_rows}", AGAIN
        )
    return summary


_Names = tuple[Lists, list[str]]


def _joined(batches: Iterable[tuple[int, _Names, _Names]]) -> ShardSummary:
    rows: list[int] = []
    bits = [np.zeros(0, np.uint8)]
    of_source: dict[str, str] = {}
    for num_rows, (sources, source_names), (modalities, names) in batches:
        rows.append(num_rows)
        of_name = [MODALITY_BIT[TEXT if name == TEXT else SPEECH] for name in names]
        of_document = np.array([*of_name, 0], np.uint8)[np.append(modalities.values, len(names))]
        bits.append(np.bitwise_or.reduceat(of_document, modalities.offsets[:-1]))
        codes, first = np.unique(sources.values, return_index=True)
        first = first[first < len(modalities.values)]
        for code, modality in zip(codes, modalities.values[first], strict=False):
            of_source[source_names[code]] = names[modality]
    return ShardSummary(tuple(rows), np.concatenate(bits), dict(sorted(of_source.items())))
