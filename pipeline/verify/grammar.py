"""The layouts of speech and text samples, proved for all samples of a unit at once."""

from __future__ import annotations

import numpy as np

from koe.errors import ContractError
from koe.vocabulary import (
    CODEBOOK_SIZE,
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_SPEECH,
    END_OF_TEXT,
    FIRST_AUDIO,
    NUM_BASE_TEXT,
    SLOTS,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_SPEECH,
    START_OF_TEXT,
    split_speech_ids,
)
from pipeline.verify.lists import first, offsets
from pipeline.verify.receipts import contradiction

_STAGE = "tokenize"
_HEAD_MARKS, _TAIL_MARKS = 6, 2  # of a speech sample, around its text and codes
_SLOT_OFFSETS = (FIRST_AUDIO + CODEBOOK_SIZE * np.arange(SLOTS)).astype(np.int32)
_TURN = np.array(
    [START_OF_HUMAN, END_OF_TEXT, END_OF_HUMAN, START_OF_AI, END_OF_TEXT, END_OF_AI], np.int32
)
_FOLLOWS = np.array([True, False, True, True, False, True])  # directly after the mark before it


def speech_codes(
    values: np.ndarray, lengths: np.ndarray, frames: np.ndarray, path: str
) -> np.ndarray:
    """Return the codes of speech samples, int32 [sum of frames, 7].

    `values`: token ids of all samples, int32; `lengths`, `frames`: int64 [n].
    Raises: ContractError naming the first row that breaks the layout or a slot's range.
    """
    bounds = offsets(lengths)
    begin, stop = bounds[:-1], bounds[1:]
    start = stop - _TAIL_MARKS - SLOTS * frames  # of the codes
    bad = (frames < 1) | (start - begin < _HEAD_MARKS)
    _refuse_speech(bad, values, bounds, frames, path)
    for place, mark in enumerate((START_OF_HUMAN, START_OF_TEXT)):
        bad |= values[begin + place] != mark
    for place, mark in enumerate((END_OF_TEXT, END_OF_HUMAN, START_OF_AI, START_OF_SPEECH), -4):
        bad |= values[start + place] != mark
    for place, mark in enumerate((END_OF_SPEECH, END_OF_AI), -2):
        bad |= values[stop + place] != mark
    text = _inside(begin + 2, start - 4, len(values))
    text &= (values < 0) | (values >= NUM_BASE_TEXT)
    bad[np.searchsorted(bounds, np.flatnonzero(text), side="right") - 1] = True
    codes = values[_inside(start, stop - _TAIL_MARKS, len(values))].reshape(-1, SLOTS)
    codes = codes - _SLOT_OFFSETS
    wrong = ((codes < 0) | (codes >= CODEBOOK_SIZE)).any(axis=1)
    bad[np.repeat(np.arange(len(frames)), frames)[wrong]] = True
    _refuse_speech(bad, values, bounds, frames, path)
    return codes


def _refuse_speech(
    bad: np.ndarray, values: np.ndarray, bounds: np.ndarray, frames: np.ndarray, path: str
) -> None:
    if (row := first(bad)) is None:
        return
    ids = values[bounds[row] : bounds[row + 1]]
    try:
        _, codes = split_speech_ids(ids)
    except ContractError as error:
        raise contradiction(_STAGE, f"{path}:{row}: {error.what}", error.why) from error
    raise contradiction(
        _STAGE,
        f"{path}:{row} holds {len(codes)} codes for its {frames[row]} frames",
        f"a frame has {SLOTS} codes, speech at least one frame, and ids of text are not negative",
    )


def prove_turns(values: np.ndarray, lengths: np.ndarray, path: str) -> None:
    """Prove that text samples are turns of user and answer, and hold no id of speech.

    Raises: ContractError naming the first row that breaks this.
    """
    bounds = offsets(lengths)
    place = np.flatnonzero((values < 0) | (values >= NUM_BASE_TEXT))  # of marks
    sample = np.searchsorted(bounds, place, side="right") - 1
    counts = np.bincount(sample, minlength=len(lengths))
    bad = (counts < len(_TURN) + 1) | ((counts - 1) % len(_TURN) != 0)
    number = np.arange(len(place)) - offsets(counts)[:-1][sample]  # of each mark in its sample
    in_turn = np.maximum(number - 1, 0) % len(_TURN)  # start_of_text follows the first
    wanted = np.where(number == 1, START_OF_TEXT, _TURN[in_turn])
    wrong = values[place] != wanted
    before = np.concatenate([[-1], place[:-1]])
    follows = np.where(number == 1, True, _FOLLOWS[in_turn]) & (number > 0)
    wrong |= follows & (place != before + 1)
    wrong |= (number == 0) & (place != bounds[:-1][sample])
    wrong |= (number == counts[sample] - 1) & (place != bounds[1:][sample] - 1)
    bad[sample[wrong]] = True
    if (row := first(bad)) is not None:
        raise contradiction(
            _STAGE,
            f"{path}:{row}: a text sample does not follow the Orpheus layout",
            "it must be turns of start_of_human USER end_of_text end_of_human start_of_ai ANSWER "
            "end_of_text end_of_ai with ids of text, and start_of_text in the first only",
        )


def _inside(start: np.ndarray, stop: np.ndarray, total: int) -> np.ndarray:
    """Mark the places in disjoint ranges start..stop, bool [total]."""
    step = np.zeros(total + 1, np.int8)
    step[start] += 1
    step[stop] -= 1
    return np.cumsum(step[:-1], dtype=np.int8).astype(bool)
