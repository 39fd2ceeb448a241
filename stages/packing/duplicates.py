"""Clips that repeat an earlier one: by codes, by speaker and text, or by the bytes of their audio.

Clips are found by 64-bit hashes, which are then confirmed with 128 bits of BLAKE2 of what is equal: of
the codes, of speaker and text, of the bytes read again. A sample costs 12 bytes while one way of
repetition is searched for, 8 more while its hashes are sorted, and about 100 if it is a suspect.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE
from koe.errors import BadRecord, StageError
from koe.repeats import repeated
from stages.packing.leaving import Clips, Left
from stages.packing.reasons import SAME_AUDIO, SAME_CODES, SAME_TEXT
from stages.settings import DuplicatesConfig
from stages.sources.location import read_clips

_DIGEST_BYTES = 16
_CHUNK = 1 << 16
_NONE = -1
_PLACE = ["audio_kind", "audio_path", "audio_member", "audio_offset", "audio_bytes"]
_PART = ["audio_bytes", "start_seconds", "seconds", "channel"]


def repetitions(
    units: Sequence[Clips], free: np.ndarray, settings: DuplicatesConfig, index_folder: str = ""
) -> Left:
    """Find the clips that repeat an earlier one, among those that are `free` to stay, bool [samples].

    A clip leaves if an earlier one that stays is its equal in one of the ways that the settings drop.
    `index_folder`: as in `stages.sources.location.read_clips`.
    Raises: StageError when audio that must be compared cannot be read any more.
    """
    kinds = [kind for kind in _kinds(index_folder) if getattr(settings, kind.setting) == "drop"]
    if not kinds:
        return Left()
    suspects = [_suspects(units, free, kind) for kind in kinds]
    numbers = np.unique(np.concatenate([found for found, _ in suspects]))
    groups = np.full((len(kinds), len(numbers)), _NONE, np.int64)
    for row, (found, group) in enumerate(suspects):
        groups[row, np.searchsorted(numbers, found)] = group
    codes, stays = _drop_later(numbers, groups, [kind.code for kind in kinds])
    out = codes > 0
    return Left(numbers[out], codes[out], stays[out].astype(np.float64))


class _Kind(ABC):
    """A way in which clips are equal. Keys are hashed; digests tell those apart whose hashes agree."""

    setting: str
    code: int
    columns: list[str]

    @abstractmethod
    def keys(self, clips: pa.Table) -> Iterator[bytes | None]:
        """Yield what equal clips have in common; None for a clip that is equal to no other."""

    def digests(self, clips: pa.Table) -> Iterator[bytes]:
        """Yield 128 bits that two clips have in common only if they are equal."""
        for key in self.keys(clips):
            assert key is not None
            yield hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()


class _SameCodes(_Kind):
    setting, code, columns = "codes", SAME_CODES, ["codes"]

    def keys(self, clips: pa.Table) -> Iterator[bytes | None]:
        for chunk in clips["codes"].chunks:
            data = chunk.flatten().to_numpy()
            ends = np.cumsum(chunk.value_lengths().to_numpy()).tolist()
            for begin, end in zip([0, *ends], ends, strict=False):
                yield data[begin:end].tobytes()


class _SameText(_Kind):
    setting, code, columns = "text", SAME_TEXT, ["source", "speaker", "text"]

    def keys(self, clips: pa.Table) -> Iterator[bytes | None]:
        for source, speaker, text in zip(
            *(clips[c].to_pylist() for c in self.columns), strict=True
        ):
            is_known = speaker is not None and speaker.strip()
            parts = (part.encode() for part in (source, speaker or "", text))
            yield b"".join(b"%d:%b" % (len(p), p) for p in parts) if is_known else None


class _SameAudio(_SameCodes):
    """The same part of the same bytes. Equal audio has equal codes, so only the bytes of clips with equal
    codes, lengths and sizes are read once more, and compared. An engine whose codes depend on what
    else is in a batch may miss a pair; it never drops a clip that is not equal."""

    setting, code, columns = "audio", SAME_AUDIO, ["id", "codes", *_PLACE, *_PART[1:]]

    def __init__(self, index_folder: str) -> None:
        self._index_folder = index_folder

    def keys(self, clips: pa.Table) -> Iterator[bytes | None]:
        parts = zip(*(clips[name].to_pylist() for name in _PART), strict=True)
        for codes, part in zip(super().keys(clips), parts, strict=True):
            yield repr(part).encode() + (codes or b"")

    def digests(self, clips: pa.Table) -> Iterator[bytes]:
        parts = zip(clips["id"].to_pylist(), self.keys(clips), strict=True)
        for (id, key), data in zip(parts, read_clips(clips, self._index_folder), strict=True):
            if isinstance(data, BadRecord):
                raise StageError(
                    f"the audio of {id} cannot be compared with that of other clips",
                    str(data),
                    "Restore it, or set interleave.duplicates.audio to keep.",
                    stage=INTERLEAVE,
                    clip_id=id,
                )
            found = hashlib.blake2b(key or b"", digest_size=_DIGEST_BYTES)
            found.update(data)
            yield found.digest()


def _kinds(index_folder: str) -> tuple[_Kind, ...]:
    return _SameAudio(index_folder), _SameCodes(), _SameText()  # the strictest first


def _drop_later(
    numbers: np.ndarray, groups: np.ndarray, codes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Go through suspects in plan order: one leaves if one of its groups has a member that stays.

    `groups`: of each kind and suspect, int64 [kinds, suspects], -1 for none. Returns the code of the
    kind, 0 where the suspect stays, and the number of the member that stays instead.
    """
    first = [np.full(int(row.max(initial=_NONE)) + 1, _NONE, np.int64) for row in groups]
    found = np.zeros(len(numbers), np.uint8)
    stays = np.full(len(numbers), _NONE, np.int64)
    for begin in range(0, len(numbers), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows = zip(numbers[part].tolist(), groups[:, part].T.tolist(), strict=True)
        for place, (number, members) in enumerate(rows, begin):
            own = [(kind, group) for kind, group in enumerate(members) if group != _NONE]
            for kind, group in own:
                if first[kind][group] != _NONE:
                    found[place], stays[place] = codes[kind], first[kind][group]
                    break
            else:
                for kind, group in own:
                    first[kind][group] = number
    return found, stays


def _suspects(
    units: Sequence[Clips], free: np.ndarray, kind: _Kind
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the clips that have an equal, ascending, and the group of each."""
    hashes, numbers = bytearray(), bytearray()  # which grow in place
    for unit in units:
        keys = kind.keys(unit.read(kind.columns))
        known = [
            (number, hash(key))
            for number, key in enumerate(keys, unit.begin)
            if key is not None and free[number]
        ]
        numbers += np.array([number for number, _ in known], np.uint32).tobytes()
        hashes += np.array([value for _, value in known], np.int64).tobytes()
    places = repeated(np.frombuffer(hashes, np.int64))
    found = np.frombuffer(numbers, np.uint32)[places].astype(np.int64)
    del hashes, numbers
    digests = np.fromiter(_digests(units, found, kind), f"V{_DIGEST_BYTES}", len(found))
    _, group = np.unique(digests, return_inverse=True)
    return found, group.astype(np.int64)


def _digests(units: Sequence[Clips], numbers: np.ndarray, kind: _Kind) -> Iterator[Any]:
    begins = np.array([unit.begin for unit in units], np.int64)
    cuts = [*np.searchsorted(numbers, begins).tolist(), len(numbers)]
    for unit, begin, end in zip(units, cuts, cuts[1:], strict=False):
        if begin < end:
            rows = pa.array(numbers[begin:end] - unit.begin)
            yield from map(np.void, kind.digests(unit.read(kind.columns).take(rows)))
