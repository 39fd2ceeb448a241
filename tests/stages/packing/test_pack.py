from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import ContractError
from stages.packing.pack import count_rows, cut_speech, cut_text, pack, row_sums

CAPACITY = 2048
SEED = 7


def naive_best_fit(lengths, capacity):
    """Rows by the textbook: each sample, longest first, to the fullest row with room."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


def speech_lengths(num_samples, mean_seconds):
    """Log-normal clips; those over a row are dropped, as they are by default."""
    rng = np.random.default_rng(SEED)
    seconds = rng.lognormal(np.log(mean_seconds) - 0.18, 0.6, num_samples)
    lengths = (seconds * 82 + 40).astype(np.int32)
    return lengths[lengths <= CAPACITY]


def text_lengths(num_samples):
    draws = np.random.default_rng(SEED).lognormal(np.log(250), 0.9, num_samples)
    return np.clip(draws, 30, 2000).astype(np.int32)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_rows_equal_the_textbooks(data):
    capacity = data.draw(st.integers(1, 60))
    lengths = np.array(data.draw(st.lists(st.integers(1, capacity), max_size=80)), np.int32)
    rows = pack(lengths, capacity)
    sums = row_sums(rows, lengths)
    assert sorted(rows.items.tolist()) == list(range(len(lengths)))
    assert sums.sum() == lengths.sum()
    assert sums.max(initial=0) <= capacity
    assert (np.diff(rows.offsets) > 0).all()
    assert sorted((capacity - sums).tolist()) == naive_best_fit(lengths.tolist(), capacity)
    assert count_rows(lengths, capacity) == len(sums)


def test_rows_equal_the_textbooks_on_many_samples():
    lengths = np.concatenate([speech_lengths(1500, 6), text_lengths(1500)])
    sums = row_sums(pack(lengths, CAPACITY), lengths)
    assert sorted((CAPACITY - sums).tolist()) == naive_best_fit(lengths.tolist(), CAPACITY)


def test_equal_lengths_keep_their_order():
    lengths = np.random.default_rng(SEED).integers(1, 40, 500).astype(np.int32)
    rows = pack(lengths, 100)
    for length in np.unique(lengths):
        same = rows.items[lengths[rows.items] == length]
        assert (np.diff(same) > 0).all()
    again = pack(lengths, 100)
    assert (rows.items == again.items).all()
    assert (rows.offsets == again.offsets).all()


@pytest.mark.parametrize("lengths", [[5, 11], [0, 3], [-1]])
def test_a_length_that_no_row_holds_is_refused(lengths):
    with pytest.raises(ContractError, match=r"1\.\.10"):
        pack(np.array(lengths), 10)


def test_no_samples_make_no_rows():
    rows = pack(np.empty(0, np.int32), 10)
    assert rows.offsets.tolist() == [0]
    assert len(rows.items) == 0


def fill(lengths):
    return lengths.sum() / (CAPACITY * count_rows(lengths, CAPACITY))


def test_realistic_samples_fill_their_rows():
    speech, text = speech_lengths(50_000, 6), text_lengths(50_000)
    rows = count_rows(speech, CAPACITY) + count_rows(text, CAPACITY)
    assert (speech.sum() + text.sum()) / (CAPACITY * rows) >= 0.995
    assert fill(speech_lengths(100_000, 5)) >= 0.995
    assert fill(text_lengths(100_000)) >= 0.999


def test_the_work_hardly_depends_on_the_number_of_samples(monkeypatch):
    steps = []

    def counted(*arguments):  # asked once for each class of equal rows that is filled
        steps.append(None)
        return bisect_left(*arguments)

    monkeypatch.setattr("stages.packing.pack.bisect_left", counted)
    work = {}
    for number in (100_000, 1_000_000):
        lengths = speech_lengths(number, 6)
        pack(lengths, CAPACITY)
        work[number], num_lengths = len(steps), len(np.unique(lengths))
        assert len(steps) < 3 * num_lengths
        steps.clear()
    assert work[1_000_000] < 1.2 * work[100_000]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=20), st.integers(16, 128))
def test_cut_text_covers_every_token_once(lengths, capacity):
    pieces = cut_text(np.array(lengths, np.int64), capacity)
    for sample, length in enumerate(lengths):
        mine = pieces.sample == sample
        start, stop = pieces.start[mine].tolist(), pieces.stop[mine].tolist()
        assert start == [0, *stop[:-1]]
        assert stop[-1] == length
        assert pieces.part[mine].tolist() == list(range(len(start)))
    assert ((pieces.stop - pieces.start) <= capacity).all()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 140), st.integers(1, 100)), max_size=20), st.integers(64, 128)
)
def test_cut_speech_cuts_between_whole_frames_only(samples, capacity):
    head = np.array([6 + text for text, _ in samples], np.int64)
    frames = np.array([number for _, number in samples], np.int64)
    lengths = head + 7 * frames + 2
    pieces, uncut = cut_speech(lengths, frames, capacity)
    for sample in range(len(samples)):
        mine = pieces.sample == sample
        start, stop = pieces.start[mine], pieces.stop[mine]
        if uncut[sample]:
            # neither all of it fits, nor its text and one of several frames
            assert not mine.any()
            assert lengths[sample] > capacity
            assert frames[sample] == 1 or head[sample] + 7 > capacity
            continue
        assert start.tolist() == [0, *stop[:-1].tolist()]
        assert stop[-1] == lengths[sample]
        assert pieces.part[mine].tolist() == list(range(len(start)))
        inner = start[1:] - head[sample]  # tokens of frames before each cut
        assert (inner % 7 == 0).all()
        assert ((inner > 0) & (inner < 7 * frames[sample])).all()
        if lengths[sample] <= capacity:
            assert len(start) == 1
    assert ((pieces.stop - pieces.start) <= capacity).all()


def test_a_speech_sample_shorter_than_its_frames_is_refused():
    with pytest.raises(ContractError, match="frames"):
        cut_speech(np.array([20]), np.array([3]), 64)
