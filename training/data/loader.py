"""Which rows each step sees: a function of seed, epoch and step, at any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from training.data.batches import Batch, collate
from training.data.shard_rows import ShardRows
from training.model.distributed import Ranks


class RowOrder:
    """The endless sequence of a run's rows, cut into steps.

    The first epoch takes the rows in stored order, which is the mixing schedule. Each later epoch
    shuffles the rows of text among the places of text, and those of speech among the places of
    speech: rows get other neighbours, and the schedule stays.
    """

    def __init__(self, row_modality: np.ndarray, rows_per_step: int, seed: int) -> None:
        self._modality, self._rows_per_step, self._seed = row_modality, rows_per_step, seed
        self._shuffled: dict[int, np.ndarray] = {}

    def rows(self, data_step: int) -> list[int]:
        """Return the row numbers of a step; steps count from 0 over all epochs."""
        num_rows = len(self._modality)
        places = range(data_step * self._rows_per_step, (data_step + 1) * self._rows_per_step)
        numbered = (divmod(place, num_rows) for place in places)
        return [int(self._epoch(epoch)[row]) if epoch else row for epoch, row in numbered]

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._shuffled:
            generator = np.random.default_rng([self._seed, epoch])
            order = np.empty(len(self._modality), np.int32)
            for kind in np.unique(self._modality):
                places = np.flatnonzero(self._modality == kind)
                order[places] = generator.permutation(places)
            # A step may end one epoch and begin the next; older epochs are never needed again.
            self._shuffled = {e: o for e, o in self._shuffled.items() if e == epoch - 1}
            self._shuffled[epoch] = order
        return self._shuffled[epoch]


def split_rows(
    numbers: Sequence[int], rank: int, world: int, micro_batch_rows: int
) -> list[list[int]]:
    """Return the micro-batches of rank `rank` among a step's rows.

    Micro-batch m of rank r is the (m * world + r)-th slice. So a rank's share depends only on the
    numbers given, and the micro-batches m of all ranks together are consecutive rows.
    """
    slices = [
        list(numbers[start : start + micro_batch_rows])
        for start in range(0, len(numbers), micro_batch_rows)
    ]
    return slices[rank::world]


class StepLoader:
    """Builds the micro-batches of each step, one step ahead in a thread of its own."""

    def __init__(
        self,
        rows: ShardRows,
        order: RowOrder,
        ranks: Ranks,
        *,
        micro_batch_rows: int,
        num_embeddings: int,
        loss_on: str,
        min_width: int = 0,
    ) -> None:
        self._rows, self._order, self._ranks = rows, order, ranks
        self._micro_batch_rows, self._num_embeddings = micro_batch_rows, num_embeddings
        self._loss_on, self._min_width = loss_on, min_width
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step-loader")
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def close(self) -> None:
        """Stop the thread, and fetching shards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._rows.close()

    def batches(self, data_step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step, and begin to build those of the next.

        Raises: ContractError from reading the rows.
        """
        now = self._ahead.pop(data_step, None) or self._pool.submit(self._build, data_step)
        batches = now.result()
        self._ahead = {data_step + 1: self._pool.submit(self._build, data_step + 1)}
        return batches

    def numbers(self, data_step: int) -> list[list[int]]:
        """Return the row numbers of this rank's micro-batches of a step."""
        numbers = self._order.rows(data_step)
        return split_rows(numbers, self._ranks.rank, self._ranks.world, self._micro_batch_rows)

    def _build(self, data_step: int) -> list[Batch]:
        self._rows.expect(self._order.rows(data_step))
        batches = [
            collate(
                [self._rows[number] for number in part],
                self._num_embeddings,
                self._rows.sources,
                self._loss_on,
                self._min_width,
            )
            for part in self.numbers(data_step)
        ]
        on_gpu = self._ranks.device.type == "cuda"
        return [batch.pin_memory() for batch in batches] if on_gpu else batches
