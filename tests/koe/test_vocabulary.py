"""Orpheus layout: the order of SNAC's codes, the ids, and their inverses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koe import vocabulary as v
from koe.errors import ContractError


def random_codebooks(frames: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 4096, frames * k) for k in (1, 2, 4)]


def test_one_frame_follows_the_published_order():
    flat = v.flatten_codes([np.array([10]), np.array([20, 21]), np.array([30, 31, 32, 33])])
    assert flat.tolist() == [10, 20, 30, 31, 21, 32, 33]
    assert v.audio_ids(flat).tolist() == [
        128266 + 10,
        128266 + 4096 + 20,
        128266 + 2 * 4096 + 30,
        128266 + 3 * 4096 + 31,
        128266 + 4 * 4096 + 21,
        128266 + 5 * 4096 + 32,
        128266 + 6 * 4096 + 33,
    ]


def test_highest_id_is_the_last_embedding_row():
    top = v.audio_ids(np.full(7, 4095, np.uint16))
    assert int(top.max()) == 156_937 == v.NUM_EMBEDDINGS - 1


@given(st.integers(0, 40), st.integers(0, 2**16))
def test_flattening_and_ids_invert(frames, seed):
    books = random_codebooks(frames, seed)
    flat = v.flatten_codes(books)
    assert flat.dtype == np.uint16
    for book, again in zip(books, v.unflatten_codes(flat), strict=True):
        np.testing.assert_array_equal(book, again)
    np.testing.assert_array_equal(v.codes_of(v.audio_ids(flat)), flat)


@given(st.lists(st.integers(0, 127_999), max_size=20), st.integers(1, 10))
def test_a_speech_sample_comes_apart_into_its_text_and_codes(text, frames):
    flat = v.flatten_codes(random_codebooks(frames))
    ids = v.speech_ids(text, flat)
    assert ids.dtype == np.int32
    assert ids[:2].tolist() == [128259, 128000]
    assert ids[-2:].tolist() == [128258, 128262]
    text_again, flat_again = v.split_speech_ids(ids)
    assert text_again.tolist() == text
    np.testing.assert_array_equal(flat_again, flat)


def test_the_text_layout():
    ids = v.conversation_ids([([1, 2], [3]), ([4], [5, 6])])
    assert ids.tolist() == [
        *(128259, 128000, 1, 2, 128009, 128260, 128261, 3, 128009, 128262),
        *(128259, 4, 128009, 128260, 128261, 5, 6, 128009, 128262),
    ]


def test_repeated_first_codes_drop_their_frame():
    grid = np.arange(28, dtype=np.uint16).reshape(4, 7)
    grid[:, 0] = [5, 5, 6, 5]
    assert v.drop_repeated_frames(grid.reshape(-1)).reshape(-1, 7)[:, 0].tolist() == [5, 6, 5]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda ids: ids[:-1], "layout"),
        (lambda ids: np.delete(ids, 8), "audio tokens"),
        (lambda ids: np.where(ids == ids[8], 128266, ids), "slot 1"),
        (lambda ids: np.where(ids == 128261, 128262, ids), "layout"),
    ],
)
def test_a_broken_speech_sample_is_refused_by_name(break_it, words):
    ids = v.speech_ids([7], v.flatten_codes(random_codebooks(2)))
    with pytest.raises(ContractError, match=words):
        v.split_speech_ids(break_it(ids))


def test_codes_of_wrong_lengths_or_range_are_refused():
    with pytest.raises(ContractError, match="do not form frames"):
        v.flatten_codes([np.zeros(2), np.zeros(3), np.zeros(8)])
    with pytest.raises(ContractError, match="out of range"):
        v.flatten_codes([np.array([4096]), np.zeros(2, int), np.zeros(4, int)])
