"""Finds clips that repeat others: what each key of `interleave.duplicates` would drop, and texts of
all speakers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from koe.repeats import later, repeated
from pipeline.stats.model import DuplicateStats
from pipeline.stats.names import Names

# kind: (what is equal, the key of interleave.duplicates that drops all but the first)
KINDS = {
    "audio": ("codes", "codes"),
    "audio_bytes": ("codes, length, size", "audio"),  # whose bytes interleave then compares
    "speaker_text": ("speaker and text", "text"),
    "text": ("text", ""),
}
COLUMNS = ["id", "text", "speaker", "seconds", "start_seconds", "audio_bytes", "channel", "codes"]
_PART = ("audio_bytes", "start_seconds", "seconds", "channel")

_MAX_EXAMPLES = 10
_MAX_IDS = 10  # of one example


class Duplicates:
    """Encoded clips whose codes, or whose text, an earlier clip has too.

    Equal codes are the same audio to the trainer, though the files may differ in what the codec
    does not hear; the same audio cut elsewhere has other codes and is not found. An untrained
    codec gives short clips the same codes by chance. Texts are equal to the character: one
    sentence read by two speakers counts, and is not a fault by itself.
    Compared by 64-bit hashes: among 15 M clips some pair collides with a chance of 6 in a million.
    A clip takes 20 bytes, and its id lies in a temporary file.
    """

    def __init__(self) -> None:
        self._names = Names()
        self._hashes = {kind: bytearray() for kind in KINDS}  # int64
        self._ids = bytearray()  # int64, hashes
        self._seconds = bytearray()  # float32

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *failure: object) -> None:
        self._names.close()

    def add(self, source: str, clips: pa.RecordBatch) -> None:
        """Take in COLUMNS of the next clips of a source."""
        first = len(self._names)
        self._names.add(clips["id"])
        codes, texts = _hash_codes(clips["codes"]), clips["text"].to_pylist()
        parts = zip(codes.tolist(), *(clips[name].to_pylist() for name in _PART), strict=True)
        speakers = zip(clips["speaker"].to_pylist(), texts, strict=True)
        hashes = {
            "audio": codes,
            "text": map(hash, texts),
            # a clip without a speaker has a hash of its own
            "speaker_text": (
                hash((source, speaker, text) if (speaker or "").strip() else ("", number))
                for number, (speaker, text) in enumerate(speakers, first)
            ),
            "audio_bytes": map(hash, parts),
        }
        for kind, values in hashes.items():
            self._hashes[kind] += np.fromiter(values, np.int64, clips.num_rows).tobytes()
        self._ids += np.fromiter(map(hash, clips["id"].to_pylist()), np.int64).tobytes()
        self._seconds += clips["seconds"].to_numpy().astype(np.float32).tobytes()

    def by_kind(self) -> dict[str, DuplicateStats]:
        """Count the clips of each kind of KINDS; empty where no clip was encoded.

        A clip whose id came before is left out: interleave quarantines it, whatever it holds.
        """
        if not len(self._names):
            return {}
        again = later(np.frombuffer(self._ids, np.int64))
        return {
            kind: self._describe(np.frombuffer(hashes, np.int64), again)
            for kind, hashes in self._hashes.items()
        }

    def _describe(self, hashes: np.ndarray, again: np.ndarray) -> DuplicateStats:
        places = np.setdiff1d(repeated(hashes), again, assume_unique=True)
        _, first, group, sizes = np.unique(
            hashes[places], return_index=True, return_inverse=True, return_counts=True
        )
        copies = np.delete(places, first)
        seconds = np.frombuffer(self._seconds, np.float32)[copies]
        num_groups = int(np.count_nonzero(sizes > 1))  # one may be left of two with the same id
        largest = np.lexsort((first, -sizes))[: min(_MAX_EXAMPLES, num_groups)]
        return DuplicateStats(
            groups=num_groups,
            clips=len(copies),
            hours=round(float(seconds.sum(dtype=np.float64)) / 3600, 4),
            examples=[
                [self._names[place] for place in places[group == number][:_MAX_IDS].tolist()]
                for number in largest
            ],
        )


def _hash_codes(codes: pa.ListArray) -> np.ndarray:
    """Hash the codes of each clip, int64 [clips]; the same within a process, not between two."""
    flat = codes.flatten().to_numpy()
    ends = (flat.itemsize * np.cumsum(codes.value_lengths().to_numpy())).tolist()
    data = flat.tobytes()
    clips = zip([0, *ends], ends, strict=False)
    return np.fromiter((hash(data[begin:end]) for begin, end in clips), np.int64, len(codes))
