"""What a run leaves, written by hand: two units of clips, one of them behind, and one of text."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from koe.schema import ENCODED, EXCLUDED, ORDER, ROW, SAMPLE, SPEECH, TEXT, Unit
from koe.stage import Outcome
from koe.vocabulary import conversation_ids, speech_ids
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.storage import Storage

KINDS = ("local", "memory", "file")
IDS = ["a/0", "a/1", "a/2", "a/3"]  # kept, repeated, below the threshold, left out by interleave
CODES = np.arange(14, dtype=np.uint16)


@dataclass(frozen=True)
class Stub:
    name: str
    version: int = 1
    content: dict[str, Any] = field(default_factory=dict)


def unit(name: str, source: str, modality: str = SPEECH) -> Unit:
    return Unit(name, source, modality, f"{source}.jsonl", "1:1", 0, 1, 1)


PLAN = Plan((unit("t", "t", TEXT), unit("a0", "a"), unit("a1", "a")), {"t": TEXT, "a": SPEECH})


def filled(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """Fill what the rows do not say with zeros and empty strings."""
    zeros = {
        f.name: None if f.nullable else "" if f.type == pa.string() else 0
        for f in schema
        if not pa.types.is_list(f.type)
    }
    return pa.Table.from_pylist([zeros | row for row in rows], schema=schema)


def excluded(id: str, stage: str, outcome: str, reason: str, location: str) -> dict[str, str]:
    return {
        "id": id, "source": "a", "stage": stage, "outcome": outcome, "reason": reason,
        "detail": "so it is", "location": location,
    }  # fmt: skip


def commit(ledger: Ledger, stage: str, name: str, kept: pa.Table, *left_out: dict, after: str = ""):
    rows = {
        outcome: pa.Table.from_pylist(
            [row for row in left_out if row["outcome"] == outcome], schema=EXCLUDED
        )
        for outcome in ("rejected", "quarantined")
    }
    previous = ledger.receipt(after, name) if after else None
    return ledger.commit(
        Stub(stage),
        name,
        previous.output.sha256 if previous else "0" * 64,
        Outcome(kept, rows["rejected"], rows["quarantined"]),
        records_in=kept.num_rows + len(left_out),
        seconds=1.0,
        measures={},
    )


def clip(id: str) -> dict[str, Any]:
    return {
        "id": id, "source": "a", "text": f"text of {id}", "audio_kind": "file", "channels": 1,
        "audio_path": f"/audio/{id}.wav", "seconds": 2.5, "audio_hz": 24000, "sig": 3.0,
        "bak": 4.0, "ovrl": 3.5, "windows": 1, "frames": 2, "codes": CODES.tolist(),
    }  # fmt: skip


def sample(id: str, ids: np.ndarray, modality: str = SPEECH) -> dict[str, Any]:
    return {
        "id": id, "source": id[0], "modality": modality, "frames": 2, "input_ids": ids.tolist(),
    }  # fmt: skip


SPOKEN = speech_ids([5, 6], CODES)
WRITTEN = conversation_ids([([1, 2], [3]), ([4], [5])])


def write_run(root: str) -> Ledger:
    """Write what a run of two units of clips and one of text leaves; the second unit is behind."""
    ledger = Ledger(Storage(root))
    no_codes = ENCODED.remove(ENCODED.get_field_index("codes"))
    for name, ids in (("a0", IDS), ("a1", ["a/1", "a/9"])):
        left_out = excluded(f"a/bad-{name}", "ingest", "quarantined", "empty_audio", "x.jsonl@7")
        again = excluded("a/0", "ingest", "quarantined", "duplicate_id", "x.jsonl@9")
        more = [left_out, again] if name == "a0" else [left_out]
        commit(ledger, "ingest", name, filled(no_codes, [clip(id) for id in ids]), *more)
    kept = [clip(id) for id in IDS]
    commit(ledger, "score", "a0", filled(ENCODED, kept), after="ingest")
    low = excluded("a/2", "encode", "rejected", "below_threshold", "a/2.wav")
    encoded = [kept[k] for k in (0, 1, 3)]
    commit(ledger, "encode", "a0", filled(ENCODED, encoded), low, after="score")
    samples = filled(SAMPLE, [sample(row["id"], SPOKEN) for row in encoded])
    commit(ledger, "tokenize", "a0", samples, after="encode")
    texts = filled(SAMPLE, [sample("t/0", WRITTEN, TEXT), sample("t/1", WRITTEN, TEXT)])
    commit(ledger, "tokenize", "t", texts)
    order = [
        # what is asked for lies in the second record batch, its row begins in the first
        *({"shard": "train-00000", "row": k, "unit": 9, "sample": 0} for k in range(1020)),
        *({"shard": "train-00000", "row": 1020, "unit": 9, "sample": k} for k in range(10)),
        {"shard": "train-00000", "row": 1020, "unit": 1, "sample": 0},
        {"shard": "train-00001", "row": 0, "unit": 0, "sample": 1, "part": 0, "stop": 6},
        {"shard": "train-00001", "row": 1, "unit": 1, "sample": 1},
        {"shard": "train-00001", "row": 1, "unit": 0, "sample": 1, "part": 1, "start": 6},
    ]
    ratio = excluded("a/3", "interleave", "rejected", "ratio_exhausted", "a0#2")
    commit(ledger, "interleave", "order", filled(ORDER, order), ratio)
    rows = [
        row(("t/1", WRITTEN[:6], TEXT, "t", 0)),
        row(("a/1", SPOKEN, SPEECH, "a0", 0), ("t/1", WRITTEN[6:], TEXT, "t", 1)),
    ]
    ledger.storage.write_table("shards/train-00001.arrow", pa.Table.from_pylist(rows, schema=ROW))
    return ledger


def row(*documents: tuple[str, np.ndarray, str, str, int]) -> dict[str, Any]:
    ids, pieces, modalities, units, parts = zip(*documents, strict=True)
    return {
        "input_ids": np.concatenate(pieces).tolist(),
        "document_lengths": [len(piece) for piece in pieces],
        "document_sources": [id[0] for id in ids],
        "document_ids": list(ids),
        "document_modalities": list(modalities),
        "document_units": list(units),
        "document_parts": list(parts),
    }


def run_dir_of(kind: str, folder: Path) -> str:
    """Name a run directory of a test's folder, one of KINDS."""
    return {
        "local": f"{folder}/run",
        "memory": f"memory://{folder.name}/run",
        "file": f"file://{folder}/run",
    }[kind]


def spelled(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def shown(view) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(view)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
