"""How much of the codec's codebooks the encoded clips use."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from koe.vocabulary import CODEBOOK_SIZE, SLOTS, unflatten_codes
from pipeline.stats.model import SlotUse

_POINTS = 64


class CodebookUse:
    """Counts of every code in each of the 7 slots of a frame."""

    def __init__(self) -> None:
        self._counts = np.zeros((SLOTS, CODEBOOK_SIZE), np.int64)

    def add(self, codes: pa.ListArray) -> None:
        frames = codes.flatten().to_numpy().reshape(-1, SLOTS).astype(np.int64)
        frames += CODEBOOK_SIZE * np.arange(SLOTS)
        counts = np.bincount(frames.reshape(-1), minlength=SLOTS * CODEBOOK_SIZE)
        self._counts += counts.reshape(SLOTS, CODEBOOK_SIZE)

    def by_slot(self) -> list[SlotUse]:
        """Describe each slot; an empty list where nothing was encoded."""
        if not self._counts.any():
            return []
        slots_of = unflatten_codes(np.arange(SLOTS))  # the slots that each codebook fills
        ranks = np.unique(np.geomspace(1, CODEBOOK_SIZE, _POINTS).round().astype(int))
        return [
            SlotUse(
                slot=slot,
                codebook=next(book for book, slots in enumerate(slots_of) if slot in slots),
                used=int((counts > 0).sum()),
                share=round(float((counts > 0).mean()), 6),
                perplexity=round(_perplexity(counts), 3),
                ranks=ranks.tolist(),
                counts_sorted=np.sort(counts)[::-1][ranks - 1].tolist(),
            )
            for slot, counts in enumerate(self._counts)
        ]


def _perplexity(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
