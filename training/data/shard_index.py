"""Reads the index of a folder of shards, on a local disk or at a URL."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from koe.errors import ContractError
from koe.schema import SCHEMA_VERSION
from training.data.stored import AGAIN
from training.places import Place, local_folder, read_bytes

INDEX_FILE = "index.json"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardEntry:
    """What the index says of a shard; `path` is relative to the index."""

    path: str
    split: str
    rows: int
    sha256: str
    num_bytes: int


def read_index(place: Place) -> dict[str, Any]:
    """Read and check the `index.json` of a folder of shards.

    Raises: ContractError; StorageError when the storage fails.
    """
    try:
        index = json.loads(read_bytes(place, INDEX_FILE))
        version = index["schema_version"]
        numbers = [index["max_row_tokens"], *(entry["rows"] for entry in index["shards"])]
        texts = [entry[key] for entry in index["shards"] for key in ("path", "split", "sha256")]
        if not all(type(number) is int for number in numbers):
            raise TypeError("rows and max_row_tokens must be integers")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("path, split and sha256 must be strings")
    except FileNotFoundError:
        raise ContractError(
            f"{place} is not a folder of shards",
            "it has no index.json",
            "Write the shards with `koe run --to interleave`.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{place}/{INDEX_FILE} cannot be read", repr(error), AGAIN) from error
    if version != SCHEMA_VERSION:
        raise ContractError(
            f"{place}/{INDEX_FILE} has schema version {version}",
            f"this koe reads {SCHEMA_VERSION}",
            AGAIN,
        )
    return index


def entries_of(index: dict[str, Any], place: Place, split: str) -> list[ShardEntry]:
    """Return the entries of a split.

    Raises: ContractError for one that shards at a URL could not be told from others by.
    """
    found = [
        ShardEntry(e["path"], split, e["rows"], e["sha256"], e.get("num_bytes", 0))
        for e in index["shards"]
        if e["split"] == split
    ]
    for entry in found if local_folder(place) is None else []:
        if not _SHA256.fullmatch(entry.sha256) or entry.num_bytes <= 0:
            raise ContractError(
                f"{place}/{INDEX_FILE} names no sha256 and size of {entry.path}",
                f"it says {entry.sha256!r:.100} and {entry.num_bytes} bytes",
                AGAIN,
            )
    return found


def fingerprint(index: dict[str, Any]) -> str:
    """Hash the list of shards, which contains the sha256 of every shard."""
    text = json.dumps(index["shards"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
