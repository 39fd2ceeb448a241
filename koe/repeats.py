"""Finds the values that repeat in a long array of hashes, without a sorted index of all of it."""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20


def repeated(hashes: np.ndarray) -> np.ndarray:
    """List the places whose value occurs more than once, int64, ascending.

    `hashes`: int64 [n]. Needs 8 bytes per value beside them; a stable argsort would need 24.
    """
    ordered = np.sort(hashes)
    values = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(values):
        return np.empty(0, np.int64)
    found = []
    for begin in range(0, len(hashes), _CHUNK):
        part = hashes[begin : begin + _CHUNK]
        place = np.minimum(np.searchsorted(values, part), len(values) - 1)
        found.append(begin + np.flatnonzero(values[place] == part))
    return np.concatenate(found)


def later(hashes: np.ndarray) -> np.ndarray:
    """List the places whose value an earlier place has, int64, ascending."""
    places = repeated(hashes)
    _, first = np.unique(hashes[places], return_index=True)
    return np.delete(places, first)
