"""Damage to the bytes of a file, and a process of its own in which to read what is left."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from hypothesis import strategies as st

_WORDS = [b"\xff\xff\xff\x7f", b"\xff" * 4, b"\x00\x00\x00\x80", bytes(4), b"\xff" * 8, bytes(8)]


@contextmanager
def child() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of one process; a call that kills it raises BrokenProcessPool."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def mutants(whole: bytes) -> st.SearchStrategy[bytes]:
    """Draw damaged copies of a file: bits flipped, words set, bytes cut off, put in and taken out."""
    # the structure lies at both ends: half of the damage is done there
    near = min(len(whole) - 8, 2000)
    place = st.one_of(
        st.integers(0, len(whole) - 8),
        st.integers(0, near),
        st.integers(len(whole) - 8 - near, len(whole) - 8),
    )
    few = st.binary(min_size=1, max_size=16)
    return st.one_of(
        st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=4).map(
            lambda flips: _flipped(whole, flips)
        ),
        st.tuples(place.map(lambda at: at // 4 * 4), st.sampled_from(_WORDS)).map(
            lambda word: whole[: word[0]] + word[1] + whole[word[0] + len(word[1]) :]
        ),
        place.map(lambda at: whole[:at]),
        st.tuples(place, few).map(lambda put: whole[: put[0]] + put[1] + whole[put[0] :]),
        st.tuples(place, few).map(lambda cut: whole[: cut[0]] + whole[cut[0] + len(cut[1]) :]),
    )


def _flipped(whole: bytes, flips: list[tuple[int, int]]) -> bytes:
    data = bytearray(whole)
    for at, bit in flips:
        data[at] ^= 1 << bit
    return bytes(data)
