"""Files that are read in blocks: each slice and each search is that of the whole file."""

from __future__ import annotations

import random

import pytest

from stages.audio import contents
from stages.audio.contents import BlockCache, Blocks


def test_blocks_are_slices_of_their_file():
    data = random.Random(0).randbytes(10_000)
    blocks = Blocks(len(data), lambda start, stop: data[start:stop], BlockCache(3_000), 1_000)
    draw = random.Random(1)
    for _ in range(300):
        start, stop = (draw.randrange(-20, 10_100) for _ in range(2))
        assert blocks[start:stop] == data[start:stop]
        at, size = draw.randrange(9_990), draw.randrange(1, 6)
        wanted = data[at : at + size]
        first, last = sorted(draw.randrange(10_001) for _ in range(2))
        assert blocks.find(wanted, first, last) == data.find(wanted, first, last)
        assert blocks.find(wanted, first) == data.find(wanted, first)
        assert blocks.startswith(wanted, at)
        assert blocks.startswith(wanted + b"!", at) is data.startswith(wanted + b"!", at)


def test_a_word_across_blocks_is_found(monkeypatch):
    monkeypatch.setattr(contents, "BLOCK_BYTES", 10)
    for place in range(25):
        data = bytes(place) + b"word" + bytes(30)
        assert Blocks(len(data), lambda start, stop, of=data: of[start:stop]).find(b"word") == place


def test_a_cache_of_blocks_holds_no_more_than_it_may():
    cache = BlockCache(1_000)
    read = [cache.get((None, number), lambda: bytes(300)) for number in (0, 1, 2, 0, 3)]
    assert all(len(block) == 300 for block in read)

    def unexpected() -> bytes:
        raise AssertionError("it was used last but one")

    assert len(cache.get((None, 0), unexpected)) == 300
    with pytest.raises(AssertionError):
        cache.get((None, 1), unexpected)
