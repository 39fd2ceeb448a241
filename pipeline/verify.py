"""Proves a run from its bytes alone: hashes, schemas, closed books, rows, grammar, provenance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.fingerprint import sha256_bytes
from pipeline.ledger import Ledger, Output, Receipt
from pipeline.plan import Plan
from pipeline.schema import (
    CLIP,
    ENCODED,
    EXCLUDED,
    ROW,
    SAMPLE,
    SCORED,
    SPEECH,
    Unit,
    require_schema,
)
from pipeline.stats import LANES, ORDER_UNIT, account_sources, read_index
from pipeline.vocabulary import NUM_EMBEDDINGS, SLOTS, split_speech_ids

_SCHEMAS = {"ingest": CLIP, "score": SCORED, "encode": ENCODED, "tokenize": SAMPLE}


@dataclass(frozen=True)
class Proof:
    """One thing that was proved, and over how much."""

    what: str
    count: int
    unit: str


def verify_run(
    plan: Plan, ledger: Ledger, on_proof: Callable[[Proof], None] = lambda proof: None
) -> list[Proof]:
    """Read everything again and prove it, in the order of the data flow.

    Raises: ContractError at the first contradiction, naming the file and what it contradicts.
    """
    proofs: list[Proof] = []

    def proved(what: str, count: int, unit: str) -> None:
        proofs.append(Proof(what, count, unit))
        on_proof(proofs[-1])

    receipts = {unit.unit: _prove_unit(unit, ledger) for unit in plan.units}
    stages_done = sum(len(done) for done in receipts.values())
    proved("receipts agree with the hash, schema and rows of their outputs", stages_done, "outputs")
    books = account_sources(plan, ((unit, receipts[unit.unit]) for unit in plan.units))
    for source, account in books.items():
        if not account.closes():
            raise ContractError(f"the books of source {source} do not close", str(account))
    proved("in = kept + rejected + quarantined + pending", len(plan.modalities), "sources")
    index = read_index(ledger)
    if index is None:
        return proofs
    samples = _Samples(plan, ledger, receipts)
    documents = 0
    for shard in index["shards"]:
        documents += _prove_shard(shard, index, ledger, samples)
    proved("shards agree with the index in hash, rows and tokens", len(index["shards"]), "shards")
    proved(
        f"rows hold at most {index['max_row_tokens']} tokens and exactly their documents",
        sum(shard["rows"] for shard in index["shards"]),
        "rows",
    )
    proved(
        "documents equal their tokenized sample, speech obeys the 7-slot grammar",
        documents,
        "documents",
    )
    samples.prove_whole(ledger)
    proved(
        "every sample is in the shards once, or excluded with a reason", samples.total, "samples"
    )
    return proofs


def _prove_unit(unit: Unit, ledger: Ledger) -> dict[str, Receipt]:
    done: dict[str, Receipt] = {}
    records = unit.num_records
    previous: Receipt | None = None
    for stage in LANES[unit.modality]:
        receipt = ledger.receipt(stage, unit.unit)
        if receipt is None:
            break
        where = f"{stage}/{unit.unit}"
        if previous and receipt.input_sha256 != previous.output.sha256:
            raise ContractError(
                f"{where} was made from another input",
                f"its receipt names {receipt.input_sha256[:12]}, {previous.stage} has "
                f"{previous.output.sha256[:12]}",
                "Run `koe run`: stale units are redone.",
            )
        _prove_output(receipt.output, _SCHEMAS[stage], ledger)
        num_excluded = _prove_output(receipt.excluded, EXCLUDED, ledger) if receipt.excluded else 0
        ended = receipt.kept + sum(receipt.rejected.values()) + sum(receipt.quarantined.values())
        if (
            receipt.records_in != records
            or ended != records
            or ended - receipt.kept != num_excluded
        ):
            raise ContractError(
                f"the books of {where} do not close",
                f"{records} came in; the receipt counts {receipt.records_in} in and {ended} out, "
                f"{num_excluded} of them excluded by its table",
            )
        records, previous = receipt.kept, receipt
        done[stage] = receipt
    return done


def _prove_output(output: Output, schema: pa.Schema, ledger: Ledger) -> int:
    data = ledger.storage.read_bytes(output.path)
    if sha256_bytes(data) != output.sha256:
        raise ContractError(
            f"{output.path} is not the file that its receipt vouches for",
            f"SHA-256 {sha256_bytes(data)[:12]} is not {output.sha256[:12]}",
            "Remove it and run `koe run`: the unit is redone.",
        )
    table = require_schema(ledger.storage.read_table(output.path), schema, output.path)
    table.validate(full=True)
    if table.num_rows != output.rows:
        raise ContractError(f"{output.path} holds {table.num_rows} rows, not {output.rows}")
    return table.num_rows


class _Samples:
    """The tokenized samples by unit, and how many tokens of each were seen in the shards."""

    def __init__(self, plan: Plan, ledger: Ledger, receipts: dict[str, dict[str, Receipt]]):
        self.total = 0
        self._ledger, self._receipts = ledger, receipts
        self._rows: dict[str, dict[str, int]] = {}
        self._tables: dict[str, pa.Table] = {}
        self._seen: dict[str, np.ndarray] = {}
        for unit in plan.units:
            receipt = receipts[unit.unit].get("tokenize")
            if receipt is None:
                raise ContractError(
                    f"the shards are complete but unit {unit.unit} is not tokenized",
                    remedy="Run `koe run`.",
                )
            table = ledger.read(receipt)
            _prove_grammar(table, receipt.output.path)
            self._tables[unit.unit] = table
            self._seen[unit.unit] = np.zeros(table.num_rows, np.int64)
            self.total += table.num_rows

    def prove(
        self, where: str, unit: str, id: str, part: int, modality: str, ids: np.ndarray
    ) -> None:
        """Prove that a document is a piece of the sample it names."""
        if unit not in self._tables:
            raise ContractError(f"{where}: document {id} names the unknown unit {unit}")
        if unit not in self._rows:
            names = self._tables[unit]["id"].to_pylist()
            self._rows[unit] = {name: row for row, name in enumerate(names)}
        row = self._rows[unit].get(id)
        if row is None:
            raise ContractError(f"{where}: document {id} is not in unit {unit}")
        table = self._tables[unit]
        whole = table["input_ids"][row].values.to_numpy()
        places = np.array([0]) if part == 0 else _find(whole, ids)
        if not any(np.array_equal(whole[p : p + len(ids)], ids) for p in places):
            raise ContractError(f"{where}: document {id} part {part} differs from its sample")
        if table["modality"][row].as_py() != modality:
            raise ContractError(f"{where}: document {id} is not {modality}")
        self._seen[unit][row] += len(ids)

    def prove_whole(self, ledger: Ledger) -> None:
        order = ledger.receipt("interleave", ORDER_UNIT)
        excluded = ledger.read_excluded(order) if order else None
        left_out: dict[str, int] = {}
        for row in excluded.to_pylist() if excluded is not None else []:
            left_out[row["id"]] = left_out.get(row["id"], 0) + 1
        for unit, table in self._tables.items():
            lengths = (
                table["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
            )
            for row in np.flatnonzero(self._seen[unit] != lengths):
                id, seen = table["id"][int(row)].as_py(), int(self._seen[unit][row])
                if seen == 0 and left_out.get(id, 0) > 0:
                    left_out[id] -= 1
                    continue
                raise ContractError(
                    f"sample {id} of unit {unit} is in the shards with {seen} tokens",
                    f"it has {int(lengths[row])}, and no excluded record accounts for it",
                )


def _prove_grammar(samples: pa.Table, where: str) -> None:
    for row, modality in enumerate(samples["modality"].to_pylist()):
        if modality != SPEECH:
            continue
        try:
            _, codes = split_speech_ids(samples["input_ids"][row].values.to_numpy())
        except ContractError as error:
            raise ContractError(f"{where}:{row}: {error.what}", error.why) from error
        if len(codes) != SLOTS * samples["frames"][row].as_py():
            raise ContractError(f"{where}:{row} holds {len(codes)} codes for its frames")


def _find(whole: np.ndarray, piece: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(whole == piece[0]) if len(piece) else np.array([], int)
    return starts[starts <= len(whole) - len(piece)]


def _prove_shard(
    shard: dict[str, Any], index: dict[str, Any], ledger: Ledger, samples: _Samples
) -> int:
    path = f"shards/{shard['path']}"
    _prove_output(
        Output(path=path, sha256=shard["sha256"], num_bytes=shard["num_bytes"], rows=shard["rows"]),
        ROW,
        ledger,
    )
    table = ledger.storage.read_table(path)
    tokens = documents = 0
    for number, row in enumerate(_rows(table)):
        ids, lengths = row["input_ids"], row["document_lengths"]
        where = f"{path}:{number}"
        if len(ids) > index["max_row_tokens"] or lengths.sum() != len(ids):
            raise ContractError(
                f"{where} has {len(ids)} tokens in documents of {int(lengths.sum())}",
                f"a row holds at most {index['max_row_tokens']} and exactly its documents",
            )
        if len(ids) and (ids.min() < 0 or ids.max() >= NUM_EMBEDDINGS):
            raise ContractError(f"{where} holds an id outside 0..{NUM_EMBEDDINGS - 1}")
        _prove_documents(row, where, samples)
        tokens, documents = tokens + len(ids), documents + len(lengths)
    if tokens != shard["tokens"] or documents != shard["documents"]:
        raise ContractError(f"{path} holds {tokens} tokens, the index says {shard['tokens']}")
    return documents


def _rows(table: pa.Table):
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in batch.schema.names}
        for row in range(batch.num_rows):
            yield {
                name: column[row].values.to_numpy(zero_copy_only=False)
                for name, column in columns.items()
            }


def _prove_documents(row: dict[str, np.ndarray], where: str, samples: _Samples) -> None:
    stops = np.cumsum(row["document_lengths"])
    keys = ("document_ids", "document_units", "document_parts", "document_modalities")
    for number, (id, unit, part, modality) in enumerate(zip(*(row[k] for k in keys), strict=True)):
        ids = row["input_ids"][stops[number] - row["document_lengths"][number] : stops[number]]
        samples.prove(where, unit, id, int(part), modality, ids)
