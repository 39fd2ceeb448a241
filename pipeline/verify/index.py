"""What describes the shards: the index and the card agree with them, and no other shard is there."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from koe.dataflow import CARD, INDEX, INTERLEAVE
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import ROW, SCHEMA_VERSION
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.stats import RunStats
from pipeline.stats.dataset_card import dataset_card
from pipeline.verify.order import RECEIPT
from pipeline.verify.receipts import STALE, setting
from pipeline.verify.shards import identity
from pipeline.verify.units import Seen

_REMEDY = "Remove {} and run `koe run`: it is written again."


def prove_index(index: dict[str, Any], order: Receipt, found: list[dict[str, Any]]) -> None:
    """Prove that the index says what the bytes say; `found`: one entry per shard, made from them."""
    named = [entry.get("path") for entry in index["shards"]]
    made = [entry["path"] for entry in found]
    if named != made:
        strange = next((name for name in (*named, *made) if (name in named) != (name in made)), "")
        raise ContractError(
            f"{INDEX} names {len(named)} shards, the order {len(made)}",
            f"{strange} is only in one of them" if strange else "their order differs",
            _REMEDY.format(INDEX),
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
                _REMEDY.format(INDEX),
            )


def prove_identity(order: Receipt, seen: Seen) -> None:
    """Prove that codes and text ids were made by the codec and tokenizer that the order names."""
    parts = identity(order)
    codecs = [(path, sha256_json(codec)) for path, codec in seen.codecs.values()]
    tokenizers = [(path, sha256) for sha256, path in seen.tokenizers.items()]
    for part, found, expected in (
        ("codec", codecs, sha256_json(parts["codec"])),
        ("tokenizer", tokenizers, parts["tokenizer"]["sha256"]),
    ):
        for path, sha256 in found:
            if sha256 != expected:
                raise ContractError(
                    f"{path} names another {part} than {RECEIPT}",
                    f"all samples of a run are made by the same {part}",
                    STALE,
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


def prove_card(ledger: Ledger, index: dict[str, Any], stats: RunStats) -> bool:
    """Prove that the card agrees with the statistics; False while there is no card.

    Its front matter is the owner's to edit. Raises: ContractError naming the first line that differs.
    """
    data = ledger.storage.find_bytes(CARD)
    if data is None:
        return False
    try:
        stored = data.decode()
    except UnicodeDecodeError as error:
        raise ContractError(
            f"{CARD} is not UTF-8 text", str(error), _REMEDY.format(CARD)
        ) from error
    first, found = _body(stored)
    _, expected = _body(dataset_card(index, stats))
    for number, (said, true) in enumerate(zip_longest(found, expected), first):
        if said != true:
            raise ContractError(
                f"{CARD}:{number} does not agree with the run",
                f"it says {said!r:.200}, the run holds {true!r:.200}",
                _REMEDY.format(CARD),
            )
    return True


def _body(card: str) -> tuple[int, list[str]]:
    """Return the lines below the YAML front matter, and the number of the first."""
    lines = card.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return 1, lines
    end = lines.index("---", 1) + 1
    return end + 1, lines[end:]
