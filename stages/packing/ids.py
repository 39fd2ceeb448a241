"""Repeated ids among all samples of a run, found without holding the ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from koe.repeats import repeated

_DIGEST_BYTES = 16


def hash_ids(ids: pa.ChunkedArray) -> np.ndarray:
    """Hash ids to 64 bits, int64 [n]: equal within one process, but not in another."""
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def first_of_its_id(
    hashes: np.ndarray, bounds: np.ndarray, read_ids: Callable[[int], Iterable[str]]
) -> np.ndarray:
    """Mark the samples whose id no earlier sample has, bool [n].

    `hashes`: of all ids in order, int64 [n], by `hash_ids`; `bounds`: where each unit's samples
    begin and end, int64 [units + 1]. The ids of a unit are read again (`read_ids(unit)`) only where
    some hash occurs twice, and are compared by 128 bits of BLAKE2. Beside the hashes this sorts 8
    bytes per sample, and holds 16 more for each suspect.
    """
    first = np.ones(len(hashes), bool)
    suspects = repeated(hashes)
    if not len(suspects):
        return first
    digests = np.empty((len(suspects), _DIGEST_BYTES), np.uint8)
    cuts = np.searchsorted(suspects, bounds)
    for unit in np.flatnonzero(np.diff(cuts)).tolist():
        begin, end = cuts[unit], cuts[unit + 1]
        ids = list(read_ids(unit))
        for place in range(begin, end):
            name = ids[suspects[place] - bounds[unit]].encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(name, digest_size=_DIGEST_BYTES).digest()
            digests[place] = np.frombuffer(digest, np.uint8)
    first[suspects] = False
    _, earliest = np.unique(digests.view(f"V{_DIGEST_BYTES}").ravel(), return_index=True)
    first[suspects[earliest]] = True
    return first
