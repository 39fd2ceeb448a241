"""Token ids and sequence layout of Orpheus on Llama 3, and the order of SNAC's codes in it.

Source: canopyai/Orpheus-TTS, `pretrain/readme.md`, `orpheus_tts_pypi/orpheus_tts/decoder.py`
and issue 37 (text layout).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from koe.errors import ContractError

START_OF_TEXT = 128000
END_OF_TEXT = 128009
START_OF_SPEECH = 128257
END_OF_SPEECH = 128258
START_OF_HUMAN = 128259
END_OF_HUMAN = 128260
START_OF_AI = 128261
END_OF_AI = 128262
PAD = 128263
FIRST_AUDIO = 128266

NUM_BASE_TEXT = 128000  # ids below this are plain text; the special ids of Llama 3 follow
NUM_BASE = 128256
CODEBOOK_SIZE = 4096
SLOTS = 7
NUM_EMBEDDINGS = FIRST_AUDIO + SLOTS * CODEBOOK_SIZE  # 156,938 rows suffice

NAMES = {
    START_OF_TEXT: "start_of_text",
    END_OF_TEXT: "end_of_text",
    START_OF_SPEECH: "start_of_speech",
    END_OF_SPEECH: "end_of_speech",
    START_OF_HUMAN: "start_of_human",
    END_OF_HUMAN: "end_of_human",
    START_OF_AI: "start_of_ai",
    END_OF_AI: "end_of_ai",
    PAD: "pad",
}

# Marks of a sample: before the text, between the text and what the model answers, after speech.
_OPENING = [START_OF_HUMAN, START_OF_TEXT]
_TURN_TO_AI = [END_OF_TEXT, END_OF_HUMAN, START_OF_AI]
_SPEECH_CLOSING = [END_OF_SPEECH, END_OF_AI]

CODEC_HZ = 24_000
FRAME_SAMPLES = 2048  # at CODEC_HZ: one frame of 7 tokens is 85.3 ms

SLOT_CODEBOOKS = (0, 1, 2, 2, 1, 2, 2)  # of the tokens of a frame, in their order
_CODES_PER_FRAME = (1, 2, 4)
_SLOT_OFFSETS = (FIRST_AUDIO + CODEBOOK_SIZE * np.arange(SLOTS)).astype(np.int32)


def flatten_codes(codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Order SNAC's three codebooks frame by frame: c0 c1 c2 c2 c1 c2 c2.

    `codebooks`: integer arrays of F, 2F and 4F codes. Returns uint16 [7 F], no offset added.
    Raises: ContractError for other lengths or codes outside 0..4095.
    """
    frames = len(codebooks[0]) if codebooks else 0
    lengths = tuple(len(codes) for codes in codebooks)
    if lengths != tuple(frames * k for k in _CODES_PER_FRAME):
        raise ContractError(
            f"SNAC codes of lengths {lengths} do not form frames",
            "one frame needs 1, 2 and 4 codes of the three codebooks",
        )
    c0, c1, c2 = (
        np.asarray(c).reshape(frames, k) for c, k in zip(codebooks, _CODES_PER_FRAME, strict=True)
    )
    grid = np.stack([c0[:, 0], c1[:, 0], c2[:, 0], c2[:, 1], c1[:, 1], c2[:, 2], c2[:, 3]], axis=1)
    if grid.size and (grid.min() < 0 or grid.max() >= CODEBOOK_SIZE):
        raise ContractError(
            f"a SNAC code of {grid.min()}..{grid.max()} is out of range",
            f"a codebook has {CODEBOOK_SIZE} entries",
        )
    return grid.reshape(-1).astype(np.uint16)


def unflatten_codes(flat_codes: np.ndarray) -> list[np.ndarray]:
    """Invert `flatten_codes`: uint16 [7 F] to int64 arrays of F, 2F and 4F codes."""
    grid = _frames(flat_codes).astype(np.int64)
    return [
        grid[:, [0]].reshape(-1),
        grid[:, [1, 4]].reshape(-1),
        grid[:, [2, 3, 5, 6]].reshape(-1),
    ]


def drop_repeated_frames(flat_codes: np.ndarray) -> np.ndarray:
    """Drop each frame whose first code equals that of the frame before it.

    This is what Orpheus' preparation notebook does; it shortens silences and held vowels.
    """
    grid = _frames(flat_codes)
    keep = np.ones(len(grid), dtype=bool)
    keep[1:] = grid[1:, 0] != grid[:-1, 0]
    return grid[keep].reshape(-1)


def audio_ids(flat_codes: np.ndarray) -> np.ndarray:
    """Add to every code the offset of its slot: uint16 [7 F] to int32 token ids [7 F]."""
    return (_frames(flat_codes).astype(np.int32) + _SLOT_OFFSETS).reshape(-1)


def codes_of(ids: np.ndarray) -> np.ndarray:
    """Invert `audio_ids`: token ids [7 F] to uint16 codes [7 F].

    Raises: ContractError naming the first id that is not in the range of its slot.
    """
    grid = _frames(ids).astype(np.int64) - _SLOT_OFFSETS
    bad = np.argwhere((grid < 0) | (grid >= CODEBOOK_SIZE))
    if len(bad):
        frame, slot = (int(i) for i in bad[0])
        raise ContractError(
            f"token {int(ids[frame * SLOTS + slot])} in slot {slot} of frame {frame} is not a code of that slot",
            f"slot {slot} holds {int(_SLOT_OFFSETS[slot])}..{int(_SLOT_OFFSETS[slot]) + CODEBOOK_SIZE - 1}",
        )
    return grid.reshape(-1).astype(np.uint16)


def _frames(flat: np.ndarray) -> np.ndarray:
    flat = np.asarray(flat)
    if len(flat) % SLOTS:
        raise ContractError(
            f"{len(flat)} audio tokens do not form complete frames", f"a frame has {SLOTS} tokens"
        )
    return flat.reshape(-1, SLOTS)


def speech_ids(text_ids: Sequence[int], flat_codes: np.ndarray) -> np.ndarray:
    """Lay out a speech sample, int32 [tokens].

    SOH BOS text EOT EOH SOA SOS codes EOS EOA.
    """
    head = np.array([*_OPENING, *text_ids, *_TURN_TO_AI, START_OF_SPEECH], np.int32)
    return np.concatenate([head, audio_ids(flat_codes), np.array(_SPEECH_CLOSING, np.int32)])


def conversation_ids(turns: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
    """Lay out (user, answer) turns, int32 [tokens]: SOH BOS user EOT EOH SOA answer EOT EOA.

    BOS opens the first turn only, as it opens a document.
    """
    ids: list[int] = []
    for user, answer in turns:
        opening = [START_OF_HUMAN] if ids else _OPENING
        ids += [*opening, *user, *_TURN_TO_AI, *answer, END_OF_TEXT, END_OF_AI]
    return np.array(ids, np.int32)


def split_speech_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take a complete speech sample apart into (text_ids, flat codes).

    Raises: ContractError naming the first place that breaks the layout.
    """
    ids = np.asarray(ids)
    starts = np.flatnonzero(ids == START_OF_SPEECH)
    ends = list(ids[:2]), list(ids[-2:])
    if ends != (_OPENING, _SPEECH_CLOSING) or len(starts) != 1:
        raise ContractError(
            "a speech document does not follow the Orpheus layout",
            "it must open with start_of_human start_of_text, hold start_of_speech once and close "
            "with end_of_speech end_of_ai",
        )
    start = int(starts[0])
    if list(ids[start - 3 : start]) != _TURN_TO_AI:
        raise ContractError(
            "a speech document does not follow the Orpheus layout",
            "end_of_text end_of_human start_of_ai must precede start_of_speech",
        )
    text_ids = ids[2 : start - 3]
    if len(text_ids) and int(text_ids.max()) >= NUM_BASE_TEXT:
        raise ContractError(
            f"text holds the id {int(text_ids.max())}", "ids of text lie below 128000"
        )
    return text_ids, codes_of(ids[start + 1 : -2])
