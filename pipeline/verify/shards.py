"""Shards: their files are what their receipts say, and were made of the order that is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, output_path, receipt_path
from koe.errors import ContractError
from koe.schema import ROW
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.documents import ShardDocuments
from pipeline.verify.files import vouched_table
from pipeline.verify.order import RECEIPT, REMEDY, Pieces
from pipeline.verify.receipts import require_receipt, setting
from pipeline.verify.samples import SampleTable


def prove_shard(
    pieces: Pieces, order: Receipt, ledger: Ledger, samples: SampleTable
) -> tuple[Receipt, ShardDocuments] | None:
    """Prove receipt, file, metadata and rows of a shard; None while it is not made."""
    receipt = ledger.receipt(INTERLEAVE, pieces.shard)
    if receipt is None:
        return None
    path = output_path(INTERLEAVE, pieces.shard)
    require_receipt(receipt, INTERLEAVE, pieces.shard, path, order.output.sha256)
    where = receipt_path(INTERLEAVE, pieces.shard)
    if receipt.content != order.content:
        raise ContractError(
            f"{where} names other settings than {RECEIPT}",
            "order and shards are made by the same",
            REMEDY,
        )
    if not receipt.records_in == receipt.kept == len(pieces) or receipt.excluded:
        raise ContractError(
            f"{where} counts {receipt.records_in} pieces in and {receipt.kept} out",
            f"the order gives the shard {len(pieces)}",
            REMEDY,
        )
    table = vouched_table(ledger.storage, receipt.output, ROW)
    _prove_metadata(table, order, path)
    return receipt, ShardDocuments(path, table, pieces, samples, setting(order, "max_row_tokens"))


def identity(order: Receipt) -> dict[str, Any]:
    """Return codec and tokenizer as the order's receipt names them."""
    return {name: setting(order, name) for name in ("codec", "tokenizer")}


def _prove_metadata(table: pa.Table, order: Receipt, path: str) -> None:
    stored = (table.schema.metadata or {}).get(b"koe", b"")
    said = json.dumps(identity(order), ensure_ascii=False, sort_keys=True)
    if stored.decode(errors="replace") != said:
        raise ContractError(
            f"the metadata of {path} names another codec or tokenizer than {RECEIPT}",
            f"{stored.decode(errors='replace')!r} is not {said!r}",
            REMEDY,
        )


def shard_figures(
    pieces: Pieces, receipt: Receipt, shard: ShardDocuments, samples: SampleTable
) -> dict[str, Any]:
    """Return a shard's entry of the index, made from its bytes; they must be its receipt's, too."""
    tokens = np.bincount(
        pieces.unit, weights=pieces.stop - pieces.start, minlength=len(samples.units)
    )
    by_modality: dict[str, int] = {}
    for unit in np.flatnonzero(tokens).tolist():
        name = samples.modalities[unit]
        by_modality[name] = by_modality.get(name, 0) + int(tokens[unit])
    figures = {
        "tokens": sum(by_modality.values()),
        "longest_row_tokens": int(shard.tokens.lengths.max(initial=0)),
        "documents": len(pieces),
    }
    measures = figures | {f"tokens.{name}": count for name, count in by_modality.items()}
    for name in sorted({*measures, *receipt.measures}):
        if receipt.measures.get(name) != measures.get(name):
            raise ContractError(
                f"{receipt_path(INTERLEAVE, pieces.shard)} counts {receipt.measures.get(name)} {name}",
                f"its shard holds {measures.get(name)}",
                REMEDY,
            )
    return {
        "path": f"{pieces.shard}.arrow",
        "split": pieces.shard.rsplit("-", 1)[0],
        "rows": receipt.output.rows,
        "tokens_by_modality": by_modality,
        "num_bytes": receipt.output.num_bytes,
        "sha256": receipt.output.sha256,
        **figures,
    }
