import numpy as np
import pytest

from tests.training.helpers import VOCABULARY, small_shards
from training.data.loader import RowOrder, StepLoader, split_rows
from training.data.shard_rows import ShardRows
from training.model.distributed import single

MODALITY = np.array([1, 1, 2, 1, 1, 2, 1, 2, 2, 3, 1], np.uint8)


def test_the_first_epoch_is_the_stored_order():
    order = RowOrder(MODALITY, 4, seed=0)
    assert order.rows(0) + order.rows(1) == list(range(8))
    assert order.rows(2)[:3] == [8, 9, 10]


def test_later_epochs_are_other_orders_of_the_same_schedule():
    order = RowOrder(np.tile(MODALITY, 20), 220, seed=0)
    epochs = [order.rows(epoch) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(220))
        np.testing.assert_array_equal(np.tile(MODALITY, 20)[epoch], np.tile(MODALITY, 20))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_seed_and_step_alone():
    one, again, other = (RowOrder(MODALITY, 4, seed) for seed in (0, 0, 1))
    sequence = [one.rows(step) for step in range(20)]
    assert [again.rows(step) for step in reversed(range(20))][::-1] == sequence
    assert [other.rows(step) for step in range(20)] != sequence


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_a_step_without_gap_or_overlap(world):
    numbers = list(range(100, 116))
    shares = [split_rows(numbers, rank, world, 2) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    in_order = [part for micro in zip(*shares, strict=True) for part in micro]
    assert [number for part in in_order for number in part] == numbers


def test_the_loader_gives_the_rows_of_any_step_in_any_order(tmp_path):
    rows = ShardRows(small_shards(tmp_path, num_rows=10), "train")
    order = RowOrder(rows.modality, 4, seed=3)
    loader = StepLoader(
        rows, order, single("cpu"), micro_batch_rows=2, num_embeddings=VOCABULARY, loss_on="all"
    )
    for step in (0, 1, 7, 2, 2, 3):
        batches = loader.batches(step)
        ids = [row[row_index >= 0].tolist() for batch in batches
               for row, row_index in zip(batch.input_ids, batch.document_index, strict=True)]  # fmt: skip
        assert ids == [rows[number].input_ids.tolist() for number in order.rows(step)]
        assert [n for part in loader.numbers(step) for n in part] == order.rows(step)
    loader.close()
