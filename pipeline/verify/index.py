"""The index and the folder of the shards: they name the shards there are, and no others."""

from __future__ import annotations

from typing import Any

from koe.dataflow import INDEX, INTERLEAVE
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import ROW, SCHEMA_VERSION
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.order import RECEIPT
from pipeline.verify.receipts import setting
from pipeline.verify.shards import identity
from pipeline.verify.units import Seen

_REMEDY = f"Remove {INDEX} and run `koe run`: it is written again."


def prove_index(index: dict[str, Any], order: Receipt, found: list[dict[str, Any]]) -> None:
    """Prove that the index says what the bytes say; `found`: one entry per shard, made from them."""
    named = [entry.get("path") for entry in index["shards"]]
    made = [entry["path"] for entry in found]
    if named != made:
        strange = next((name for name in (*named, *made) if (name in named) != (name in made)), "")
        raise ContractError(
            f"{INDEX} names {len(named)} shards, the order {len(made)}",
            f"{strange} is only in one of them" if strange else "their order differs",
            _REMEDY,
        )
    for said, entry in zip(index["shards"], found, strict=True):
        _require_equal(said, entry, f"{INDEX} of {entry['path']}", "its bytes")
    parts = identity(order)
    settings = {name: value for name, value in order.content.items() if name not in parts}
    expected = {
        "schema_version": SCHEMA_VERSION,
        "max_row_tokens": setting(order, "max_row_tokens"),
        **parts,
        INTERLEAVE: settings,
        "schema": ROW.to_string(show_field_metadata=False).splitlines(),
    }
    _require_equal(index, expected, INDEX, RECEIPT)


def _require_equal(said: dict[str, Any], expected: dict[str, Any], where: str, source: str) -> None:
    for key, value in expected.items():
        if said.get(key) != value:
            raise ContractError(
                f"{where} says {said.get(key)!r:.200} for {key}",
                f"{source} says {value!r:.200}",
                _REMEDY,
            )


def prove_identity(order: Receipt, seen: Seen) -> None:
    """Prove that codes and text ids were made by the codec and tokenizer that the order names."""
    parts = identity(order)
    for path, codec in seen.codecs.values():
        _require_same(sha256_json(codec) == sha256_json(parts["codec"]), path, "codec")
    for sha256, path in seen.tokenizers.items():
        _require_same(sha256 == parts["tokenizer"]["sha256"], path, "tokenizer")


def _require_same(same: bool, path: str, what: str) -> None:
    if not same:
        raise ContractError(
            f"{path} names another {what} than {RECEIPT}",
            f"all samples of a run are made by the same {what}",
            "Run `koe run`: what is stale is done again.",
        )


def prove_folder(ledger: Ledger, index: dict[str, Any]) -> None:
    """Prove that no shard lies in the folder that the index does not name."""
    named = {entry["path"] for entry in index["shards"]}
    strange = [
        name
        for name in ledger.storage.names("shards")
        if name.endswith(".arrow") and name not in named
    ]
    if strange:
        raise ContractError(
            f"shards/{strange[0]} is not a shard of this run",
            f"{INDEX} does not name it",
            "Remove it: whoever loads the folder would read it as well.",
        )
