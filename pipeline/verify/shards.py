"""Shards: files agree with their receipts, and rows hold the pieces that the order gives them."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, output_path, receipt_path
from koe.schema import ROW
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.files import vouched_table
from pipeline.verify.lists import TokenLists, differ, first, flat, lengths, offsets
from pipeline.verify.order import RECEIPT, Pieces, order_error
from pipeline.verify.receipts import require_receipt, setting
from pipeline.verify.samples import SampleTable, hash_documents

Document = tuple[str, np.ndarray]  # id and tokens


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


class ShardDocuments:
    """A shard's rows, proved to be the documents of its pieces but for their ids and tokens."""

    def __init__(
        self, path: str, table: pa.Table, pieces: Pieces, samples: SampleTable, capacity: int
    ) -> None:
        self.path, self.tokens = path, TokenLists(table["input_ids"])
        self.ids = flat(table["document_ids"])
        self._pieces = pieces
        self._prove_layout(table)
        self._prove_labels(table, samples)
        bounds = offsets(flat(table["document_lengths"]).to_numpy())
        row_begin = bounds[offsets(lengths(table["document_lengths"]))[:-1]]
        self._start = bounds[:-1] - row_begin[pieces.row]  # of each document in its row
        self._stop = bounds[1:] - row_begin[pieces.row]
        self._prove_rows(row_begin, int(bounds[-1]), capacity)

    def cut(self, documents: np.ndarray) -> list[np.ndarray]:
        """View the tokens of documents (numbers within the shard)."""
        rows = self._pieces.row[documents]
        return self.tokens.cut(rows, self._start[documents], self._stop[documents])

    def hashes(self, documents: np.ndarray) -> np.ndarray:
        """Hash documents (numbers within the shard), see `hash_documents`."""
        ids = self.ids.take(pa.array(documents)).to_pylist()
        return hash_documents(ids, self.cut(documents))

    def name(self, document: int) -> str:
        row = int(self._pieces.row[document])
        return f"document {self.ids[document].as_py()} in {self.path}:{row}"

    def _prove_layout(self, table: pa.Table) -> None:
        """Prove that each row has the documents of the order, all columns alike."""
        number = np.bincount(self._pieces.row)
        if len(number) != table.num_rows:
            what = f"{self.path} has {table.num_rows} rows"
            raise order_error(what, f"the order has {len(number)}")
        for column in ROW.names[1:]:
            found = lengths(table[column])
            if (row := first(found != number)) is not None:
                raise order_error(
                    f"{self.path}:{row} lists {found[row]} {column}",
                    f"the order gives the row {number[row]} documents",
                )

    def _prove_labels(self, table: pa.Table, samples: SampleTable) -> None:
        pieces = self._pieces
        names = (samples.sources, samples.modalities, samples.units)
        of_units = [pa.array(values, pa.string()).take(pa.array(pieces.unit)) for values in names]
        expected = {
            "document_lengths": pa.array(pieces.stop - pieces.start, pa.int32()),
            "document_sources": of_units[0],
            "document_modalities": of_units[1],
            "document_units": of_units[2],
            "document_parts": pa.array(pieces.part, pa.int32()),
        }
        for column, values in expected.items():
            found = flat(table[column])
            if not found.equals(values):
                document = int(np.argmax(differ(found, values)))
                said, wanted = (array[document].as_py() for array in (found, values))
                raise order_error(
                    f"{self.name(document)} is not the piece that the order gives the row",
                    f"its {column} says {said!r}, the order {wanted!r}",
                )

    def _prove_rows(self, row_begin: np.ndarray, total: int, capacity: int) -> None:
        sums = np.diff(np.append(row_begin, total))
        held = self.tokens.lengths
        if (row := first((held != sums) | (held > capacity))) is not None:
            raise order_error(
                f"{self.path}:{row} has {held[row]} tokens in documents of {sums[row]}",
                f"a row holds at most {capacity} and exactly its documents",
            )


def prove_pieces(pieces: Pieces, samples: SampleTable, shard: ShardDocuments | None) -> np.ndarray:
    """Prove that pieces lie in their samples, and that documents of whole samples equal them.

    Returns the tokens of each piece's sample, int64 [pieces].
    """
    first_of, size = samples.bounds[:-1][pieces.unit], np.diff(samples.bounds)[pieces.unit]
    wrong = (pieces.sample < 0) | (pieces.sample >= size)
    number = np.where(wrong, 0, first_of + pieces.sample)
    sizes = np.where(wrong, 0, samples.lengths[number] if len(samples) else 0).astype(np.int64)
    wrong |= (pieces.start < 0) | (pieces.start >= pieces.stop) | (pieces.stop > sizes)
    if (place := first(wrong)) is not None:
        raise order_error(
            f"the order gives {pieces.shard}:{pieces.row[place]} tokens "
            f"{pieces.start[place]} to {pieces.stop[place]} of sample {pieces.sample[place]} of "
            f"{samples.units[pieces.unit[place]]}",
            "the sample does not have them",
        )
    if shard is not None:
        whole = np.flatnonzero(pieces.stop - pieces.start == sizes)
        differs = shard.hashes(whole) != samples.documents[number[whole]]
        if (place := first(differs)) is not None:
            _explain(shard, int(whole[place]), pieces, samples)
    return sizes


def _explain(
    shard: ShardDocuments, document: int, pieces: Pieces, samples: SampleTable
) -> NoReturn:
    """Read the sample of a document that differs from it again, and say what differs."""
    opened = samples.open(int(pieces.unit[document]))
    row, start, stop = (x[[document]] for x in (pieces.sample, pieces.start, pieces.stop))
    (wanted,) = opened.tokens.cut(row, start, stop)
    (found,) = shard.cut(np.array([document]))
    prove_document(
        shard.name(document),
        (shard.ids[document].as_py(), found),
        (opened.ids[int(row[0])].as_py(), wanted),
    )
    what = f"{shard.name(document)} differs from its tokenized sample"
    raise order_error(what, "the samples were replaced while they were verified")


def prove_document(name: str, found: Document, wanted: Document) -> None:
    """Prove that a document has the id and tokens of its piece of a sample."""
    if not np.array_equal(found[1], wanted[1]):
        at = int(np.argmax(found[1] != wanted[1]))
        why = f"token {at} is {found[1][at]}, not {wanted[1][at]}"
    elif found[0] != wanted[0]:
        why = f"the order names {wanted[0]}"
    else:
        return
    raise order_error(f"{name} differs from its tokenized sample", why)
