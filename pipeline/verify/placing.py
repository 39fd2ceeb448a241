"""What became of every sample: all its tokens placed once, or left out for a reason."""

from __future__ import annotations

import numpy as np

from koe.errors import ContractError
from koe.schema import SPEECH
from koe.vocabulary import SLOTS
from pipeline.verify.order import REMEDY, Pieces
from pipeline.verify.samples import CUT, OPEN, PLACED, SampleTable

_TAIL_TOKENS = 2  # end_of_speech end_of_ai


class Placing:
    """Takes in the pieces of one shard after the other; those of cut samples wait for the rest."""

    def __init__(self, samples: SampleTable) -> None:
        self._samples = samples
        self._cut: list[np.ndarray] = []  # of cut samples: number, part, start, stop, tokens

    def add(self, pieces: Pieces, lengths: np.ndarray) -> None:
        """Note the outcome of samples; `lengths`: their tokens, int64 [pieces].

        Raises: ContractError naming a sample that is excluded, or placed before.
        """
        number = self._samples.bounds[pieces.unit] + pieces.sample
        is_whole = (pieces.start == 0) & (pieces.stop == lengths) & (pieces.part == 0)
        whole, cut = number[is_whole], np.flatnonzero(~is_whole)
        outcome = self._samples.outcome
        self._require(outcome[whole] == OPEN, whole, pieces.shard)
        outcome[whole] = PLACED
        ordered = np.sort(whole)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        self._require(np.zeros(len(again), bool), again, pieces.shard)
        of_cut = number[cut]
        self._require((outcome[of_cut] == OPEN) | (outcome[of_cut] == CUT), of_cut, pieces.shard)
        outcome[of_cut] = CUT
        columns = (number, pieces.part, pieces.start, pieces.stop, lengths)
        self._cut.append(np.stack([column[cut].astype(np.int64) for column in columns]))

    def prove_whole(self) -> None:
        """Prove that the pieces of every cut sample are all of it, and that none is forgotten."""
        cut = np.concatenate([np.empty((5, 0), np.int64), *self._cut], axis=1)
        self._cut = []
        if cut.size:
            self._prove_tiled(*cut[:, np.lexsort((cut[1], cut[0]))])
            self._samples.outcome[cut[0]] = PLACED
        is_open = self._samples.outcome == OPEN
        if is_open.any():
            raise ContractError(
                f"{self._samples.name(int(np.argmax(is_open)))} is in no shard",
                "no excluded record accounts for it",
                REMEDY,
            )

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
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ContractError(
                f"the pieces of {self._samples.name(int(number[place]))} are not all of it",
                f"part {part[place]} is its tokens {start[place]} to {stop[place]} of "
                f"{lengths[place]}; pieces follow each other, and speech is cut between frames",
                REMEDY,
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
        if free.all():
            return
        sample = int(number[np.argmin(free)])
        placed = self._samples.outcome[sample] in (PLACED, CUT)
        raise ContractError(
            f"the order places {self._samples.name(sample)} in {shard}",
            "it was placed before" if placed else "its excluded table leaves it out",
            REMEDY,
        )
