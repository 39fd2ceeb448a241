"""Shards: their files are what their receipts say, and were made of the order that is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, output_path, receipt_path
from koe.schema import ROW
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.documents import ShardDocuments
from pipeline.verify.files import vouched_table
from pipeline.verify.order import RECEIPT, Pieces, order_error
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
        what = f"{where} names other settings than {RECEIPT}"
        raise order_error(what, "order and shards are made with the same settings")
    if not receipt.records_in == receipt.kept == len(pieces) or receipt.excluded:
        what = f"{where} counts {receipt.records_in} pieces in and {receipt.kept} out"
        raise order_error(what, f"the order gives the shard {len(pieces)}")
    table = vouched_table(ledger.storage, receipt.output, ROW)
    _prove_metadata(table, order, path)
    return receipt, ShardDocuments(path, table, pieces, samples, setting(order, "max_row_tokens"))


def identity(order: Receipt) -> dict[str, Any]:
    """Return codec and tokenizer as the order's receipt names them."""
    return {name: setting(order, name) for name in ("codec", "tokenizer")}


def _prove_metadata(table: pa.Table, order: Receipt, path: str) -> None:
    said = (table.schema.metadata or {}).get(b"koe", b"").decode(errors="replace")
    expected = json.dumps(identity(order), ensure_ascii=False, sort_keys=True)
    if said != expected:
        raise order_error(
            f"the metadata of {path} names another codec or tokenizer than {RECEIPT}",
            f"{said!r} is not {expected!r}",
        )


def shard_figures(
    pieces: Pieces, receipt: Receipt, shard: ShardDocuments, samples: SampleTable
) -> dict[str, Any]:
    """Return a shard's entry of the index, made from its bytes, with which its receipt must agree."""
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
        said, found = receipt.measures.get(name), measures.get(name)
        if said != found:
            what = f"{receipt_path(INTERLEAVE, pieces.shard)} counts {said} {name}"
            raise order_error(what, f"its shard holds {found}")
    return {
        "path": f"{pieces.shard}.arrow",
        "split": pieces.shard.rsplit("-", 1)[0],
        "rows": receipt.output.rows,
        "tokens_by_modality": by_modality,
        "num_bytes": receipt.output.num_bytes,
        "sha256": receipt.output.sha256,
        **figures,
    }
