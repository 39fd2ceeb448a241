"""Clips that interleave left out because they repeat an earlier one that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE
from koe.errors import ContractError
from koe.repeats import repeated
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.clips import clips_by_unit, clips_of_unit, require_none, settings_of
from pipeline.verify.receipts import contradiction
from pipeline.verify.samples import EXHAUSTED, OPEN, SAME_AUDIO, SAME_CODES, SAME_TEXT, SampleTable
from stages.settings import DuplicatesConfig

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Kind:
    """How clips are equal. `is_proof`: the tables alone tell it; audio would have to be read again."""

    setting: str
    outcome: int
    columns: list[str]
    is_proof: bool
    keys: Callable[[pa.Table], Iterator[object]]  # None for a clip that is equal to no other


def _codes(clips: pa.Table) -> Iterator[object]:
    for codes in clips["codes"]:
        yield codes.values.to_numpy().tobytes()


def _audio(clips: pa.Table) -> Iterator[object]:
    yield from zip(_codes(clips), *(clips[c].to_pylist() for c in _PART), strict=True)


def _texts(clips: pa.Table) -> Iterator[object]:
    for source, speaker, text in zip(*(clips[c].to_pylist() for c in _TEXT), strict=True):
        yield (source, speaker, text) if (speaker or "").strip() else None


_PART = ["audio_bytes", "start_seconds", "seconds", "channel"]
_TEXT = ["source", "speaker", "text"]
_KINDS = (
    _Kind("audio", SAME_AUDIO, ["codes", *_PART], False, _audio),
    _Kind("codes", SAME_CODES, ["codes"], True, _codes),
    _Kind("text", SAME_TEXT, _TEXT, True, _texts),
)


def prove_duplicates(order: Receipt, ledger: Ledger, samples: SampleTable) -> None:
    """Prove that clips left as repetitions where the settings say so, and nowhere else.

    Of clips with the same audio it is proved that codes, length and size agree: their bytes are not
    read again. Holds 18 bytes per sample. Raises: ContractError.
    """
    settings = settings_of(order, "duplicates", DuplicatesConfig)
    for kind in _KINDS:
        if getattr(settings, kind.setting) == "drop":
            _prove_kind(ledger, samples, kind)
        else:
            why = f"interleave.duplicates.{kind.setting} is keep"
            require_none(samples, kind.outcome, why)


def _prove_kind(ledger: Ledger, samples: SampleTable, kind: _Kind) -> None:
    """Prove that clips of this outcome have an equal that stays before them, and those that stay none."""
    hashes = np.zeros(len(samples), np.int64)
    has_key = np.zeros(len(samples), bool)
    for unit, clips in clips_by_unit(ledger, samples, kind.columns):
        for number, key in enumerate(kind.keys(clips), int(samples.bounds[unit])):
            hashes[number], has_key[number] = hash(key), key is not None
    stays = has_key & np.isin(samples.outcome, (OPEN, EXHAUSTED))
    left = np.flatnonzero(samples.outcome == kind.outcome)
    early = has_key[left] & (_first_that_stays(hashes, stays, hashes[left]) < left)
    if not early.all():
        what = f"{samples.name(int(left[~early][0]))} is left out as a repetition"
        raise _error(what, f"no earlier clip that stays has its {kind.setting}")
    if kind.is_proof:
        suspects = np.flatnonzero(stays)
        _require_distinct(ledger, samples, kind, suspects[repeated(hashes[suspects])])


def _first_that_stays(hashes: np.ndarray, stays: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find the first sample that `stays` with each of the `wanted` hashes, int64; n where none has."""
    values, inverse = np.unique(wanted, return_inverse=True)
    found = np.full(len(values), len(hashes), np.int64)
    for begin in range(0, len(hashes) if len(values) else 0, _CHUNK):
        part = hashes[begin : begin + _CHUNK]
        place = np.minimum(np.searchsorted(values, part), len(values) - 1)
        rows = np.flatnonzero(stays[begin : begin + _CHUNK] & (values[place] == part))
        np.minimum.at(found, place[rows], begin + rows)
    return found[inverse]


def _require_distinct(
    ledger: Ledger, samples: SampleTable, kind: _Kind, suspects: np.ndarray
) -> None:
    """Prove that suspects, whose hashes agree, are not equal."""
    seen: dict[object, int] = {}
    cuts = np.searchsorted(suspects, samples.bounds)
    for unit in np.flatnonzero(np.diff(cuts)).tolist():
        numbers = suspects[cuts[unit] : cuts[unit + 1]]
        clips = clips_of_unit(ledger, samples, unit, kind.columns)
        keys = kind.keys(clips.take(pa.array(numbers - samples.bounds[unit])))
        for number, key in zip(numbers.tolist(), keys, strict=True):
            if (earlier := seen.setdefault(key, number)) != number:
                what = f"{samples.name(number)} is not left out"
                raise _error(what, f"{samples.name(earlier)} has its {kind.setting}")


def _error(what: str, why: str) -> ContractError:
    return contradiction(INTERLEAVE, what, why)
