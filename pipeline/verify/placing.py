"""The outcome of every sample: all its tokens are placed once, or it is left out for a reason."""

from __future__ import annotations

import numpy as np

from koe.schema import SPEECH
from koe.vocabulary import SLOTS
from pipeline.verify.lists import first
from pipeline.verify.order import Pieces, order_error
from pipeline.verify.samples import CUT, OPEN, PLACED, SampleTable

_TAIL_TOKENS = 2  # end_of_speech end_of_ai


class Placing:
    """Takes in the pieces of one shard after another; those of cut samples wait for the rest."""

    def __init__(self, samples: SampleTable) -> None:
        self._samples = samples
        self._cut: list[np.ndarray] = []  # of cut samples: number, part, start, stop, tokens

    def add(self, pieces: Pieces, lengths: np.ndarray) -> None:
        """Note the outcome of samples; `lengths`: the tokens of each piece's sample, int64 [pieces].

        Raises: ContractError naming a sample that is excluded, or placed before.
        """
        number = self._samples.bounds[pieces.unit] + pieces.sample
        is_uncut = (pieces.start == 0) & (pieces.stop == lengths) & (pieces.part == 0)
        uncut, cut = number[is_uncut], np.flatnonzero(~is_uncut)
        outcome = self._samples.outcome
        self._require(outcome[uncut] == OPEN, uncut, pieces.shard)
        outcome[uncut] = PLACED
        ordered = np.sort(uncut)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        self._require(np.zeros(len(again), bool), again, pieces.shard)
        of_cut = number[cut]
        self._require((outcome[of_cut] == OPEN) | (outcome[of_cut] == CUT), of_cut, pieces.shard)
        outcome[of_cut] = CUT
        columns = (number, pieces.part, pieces.start, pieces.stop, lengths)
        self._cut.append(np.stack([column[cut].astype(np.int64) for column in columns]))

    def prove_complete(self) -> None:
        """Prove that the pieces of every cut sample are all of it, and that no sample is missing."""
        cut = np.concatenate([np.empty((5, 0), np.int64), *self._cut], axis=1)
        self._cut = []
        if cut.size:
            self._prove_tiled(*cut[:, np.lexsort((cut[1], cut[0]))])
            self._samples.outcome[cut[0]] = PLACED
        if (sample := first(self._samples.outcome == OPEN)) is not None:
            what = f"{self._samples.name(sample)} is in no shard"
            raise order_error(what, "no excluded record accounts for it")

    def _prove_tiled(
        self,
        number: np.ndarray,
        part: np.ndarray,
        start: np.ndarray,
        stop: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        """Prove that pieces, sorted by sample and part, follow each other from end to end."""
        follows = np.append(False, number[1:] == number[:-1])
        is_last = np.append(~follows[1:], True)
        wrong = start != np.where(follows, np.roll(stop, 1), 0)
        wrong |= part != np.where(follows, np.roll(part, 1) + 1, 0)
        wrong |= is_last & (stop != lengths)
        wrong |= self._within_frame(number, start, lengths)
        if (place := first(wrong)) is not None:
            raise order_error(
                f"the pieces of {self._samples.name(int(number[place]))} are not all of it",
                f"part {part[place]} is its tokens {start[place]} to {stop[place]} of "
                f"{lengths[place]}; pieces follow each other, and speech is cut between frames",
            )

    def _within_frame(
        self, number: np.ndarray, start: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Mark pieces of speech that begin inside a frame, or with less than one."""
        speech = np.array([modality == SPEECH for modality in self._samples.modalities], bool)
        unit = np.searchsorted(self._samples.bounds, number, side="right") - 1
        codes = lengths - _TAIL_TOKENS - start
        return speech[unit] & (start > 0) & ((codes % SLOTS != 0) | (codes < SLOTS))

    def _require(self, free: np.ndarray, number: np.ndarray, shard: str) -> None:
        if (place := first(~free)) is not None:
            sample = int(number[place])
            placed = self._samples.outcome[sample] in (PLACED, CUT)
            raise order_error(
                f"the order places {self._samples.name(sample)} in {shard}",
                "it was placed before" if placed else "its excluded table leaves it out",
            )
