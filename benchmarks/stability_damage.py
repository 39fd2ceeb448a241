"""What is wrong with some documents of a real corpus, done to those of the stability experiment.

Repeated codes come from a codec or decoder that hangs, silence from clips without speech, codes of
another clip from files that were mixed up, shuffled slots from another layout of the frame, mojibake
from text that was decoded as another encoding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from koe.vocabulary import FIRST_AUDIO, SLOTS

DAMAGED = "!"  # in the id of a document, before what is wrong with it
MOJIBAKE, REPEATED_CODE, SILENCE = "mojibake", "repeated_code", "silence"
OTHER_CLIP, SHUFFLED_SLOTS = "other_clip", "shuffled_slots"
TEXT_DAMAGE = (MOJIBAKE,)
SPEECH_DAMAGE = (REPEATED_CODE, SILENCE, OTHER_CLIP, SHUFFLED_SLOTS)
_SHUFFLED = (3, 0, 6, 1, 5, 2, 4)


class Document(NamedTuple):
    """Ids of a document, and what is wrong with it; empty for nothing."""

    ids: np.ndarray
    damage: str = ""


def damaged_text(text: str) -> str:
    """Read Japanese text as Latin-1, which gives the accented letters that everybody knows."""
    return text.encode().decode("latin-1")


def damaged_codes(codes: np.ndarray, damage: str) -> np.ndarray:
    """Damage the codes of a clip, uint16 [7 frames], in the ways that concern codes alone."""
    if damage == REPEATED_CODE:
        return np.full_like(codes, codes[0])
    if damage == SILENCE:
        return np.tile(codes[:SLOTS], len(codes) // SLOTS)
    return codes


def with_shuffled_slots(ids: np.ndarray) -> np.ndarray:
    """Bring the ids of each frame of a clip into another order, so that no slot is where it belongs."""
    ids = ids.copy()
    is_audio = ids >= FIRST_AUDIO
    ids[is_audio] = ids[is_audio].reshape(-1, SLOTS)[:, _SHUFFLED].ravel()
    return ids


def damaged_rows(table: pa.Table) -> np.ndarray:
    """Tell which rows hold a damaged document: bool [rows]."""
    ids = table["document_ids"].to_pylist()
    return np.array([any(DAMAGED in id for id in of_row) for of_row in ids], bool)
