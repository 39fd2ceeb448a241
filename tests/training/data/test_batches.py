import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koe.errors import ContractError
from koe.vocabulary import (
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_TEXT,
    NUM_EMBEDDINGS,
    PAD,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_SPEECH,
    conversation_ids,
    speech_ids,
)
from tests.training.helpers import VOCABULARY
from tests.training.shards import write_shards
from training.data.batches import IGNORED, collate, in_response
from training.data.shard_rows import Row, ShardRows

SOURCES = ["a", "b", "c"]
IDS = st.sampled_from(
    [0, 7, 128_258, START_OF_HUMAN, END_OF_HUMAN, START_OF_AI, END_OF_AI, PAD, 156_937]
)
# ids, source and part of a document
DOCUMENT = st.tuples(
    st.lists(IDS, min_size=1, max_size=9), st.sampled_from(SOURCES), st.integers(0, 2)
)
ROWS = st.lists(st.lists(DOCUMENT, min_size=1, max_size=5), min_size=1, max_size=4)


def row_of(index, ids, lengths, sources, parts=None):
    return Row(
        index, np.array(ids, np.int32), np.array(lengths, np.int32), sources,
        ["text"] * len(lengths), np.array(parts or [0] * len(lengths), np.int32),
        pa.array([f"{index}/{place}" for place in range(len(lengths))]),
    )  # fmt: skip


def test_collate_marks_documents():
    rows = [row_of(0, [5, 6, 7, 8, 9], [2, 3], ["b", "a"]), row_of(1, [3, 4], [2], ["b"])]
    batch = collate(rows, NUM_EMBEDDINGS, ["a", "b"])
    no = IGNORED
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[no, 6, no, 8, 9], [no, 4, no, no, no]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert batch.document_index.tolist() == [[0, 0, 1, 1, 1], [0, 0, -1, -1, -1]]
    assert batch.source.tolist() == [[1, 1, 0, 0, 0], [1, 1, -1, -1, -1]]
    assert (batch.num_supervised, batch.num_tokens) == (4, 7)


def test_rows_are_padded_to_a_width_that_is_asked_for():
    rows = [row_of(0, [5, 6, 7], [1, 2], ["b", "a"]), row_of(1, [3, 4], [2], ["b"])]
    wide = collate(rows, NUM_EMBEDDINGS, ["a", "b"], min_width=5)
    narrow = collate(rows, NUM_EMBEDDINGS, ["a", "b"], min_width=2)
    assert wide.input_ids.tolist() == [[5, 6, 7, PAD, PAD], [3, 4, PAD, PAD, PAD]]
    assert wide.document_index.tolist() == [[0, 1, 1, -1, -1], [0, 0, -1, -1, -1]]
    assert narrow.input_ids.shape == (2, 3)
    assert (wide.num_supervised, wide.num_tokens) == (narrow.num_supervised, narrow.num_tokens)


def test_an_id_without_embedding_is_refused(tmp_path):
    rows = ShardRows(write_shards(tmp_path), "train")
    with pytest.raises(ContractError, match=r"row 0 .*512 embeddings"):
        collate([rows[0]], VOCABULARY, rows.sources)


def test_only_responses_are_predicted_when_asked():
    turns = conversation_ids([([11, 12], [21, 22]), ([13], [23])])
    spoken = speech_ids([14], np.arange(7, dtype=np.uint16))
    row = row_of(0, [*turns, *spoken], [len(turns), len(spoken)], ["t", "s"])
    labels = collate([row], NUM_EMBEDDINGS, ["t", "s"], "response").labels[0]
    kept = labels[labels != IGNORED].tolist()
    first, second = [21, 22, END_OF_TEXT, END_OF_AI], [23, END_OF_TEXT, END_OF_AI]
    assert kept == [*first, *second, *spoken[list(spoken).index(START_OF_SPEECH) :]]
    everything = collate([row], NUM_EMBEDDINGS, ["t", "s"]).labels[0]
    assert int((everything != IGNORED).sum()) == len(row.input_ids) - 2


@pytest.mark.parametrize("cut", range(1, 19))
def test_the_later_part_of_a_split_sample_goes_on_where_the_first_ended(cut):
    ids = conversation_ids([([11, 12], [21, 22]), ([13], [23])])
    assert len(ids) == 19
    whole, before = (in_response(ids, np.array([len(ids)]), np.array([0])), np.array([5, 6]))
    parts = np.concatenate([before, ids[cut:]])
    found = in_response(parts, np.array([2, len(ids) - cut]), np.array([0, 1]))
    assert not found[:2].any()
    np.testing.assert_array_equal(found[2:], whole[cut:])


def answers(ids, part):
    """Mark the tokens of one document that are answers, token by token."""
    controls = [i for i in ids if i in (START_OF_HUMAN, END_OF_HUMAN, START_OF_AI, END_OF_AI)]
    depth = int(part > 0 and (not controls or controls[0] == END_OF_AI))
    marks = []
    for i in ids:
        marks.append(depth > 0)
        depth += (i == START_OF_AI) - (i == END_OF_AI)
    return marks


def plain_row(documents, width, loss_on):
    """Write down the five numbers of every token of a row, one at a time."""
    tokens = []
    for index, (ids, source, part) in enumerate(documents):
        kept = answers(ids, part) if loss_on == "response" else [True] * len(ids)
        for position, i in enumerate(ids):
            label = i if position and kept[position] else IGNORED
            tokens.append((i, label, position, index, SOURCES.index(source)))
    return tokens + [(PAD, IGNORED, 0, -1, -1)] * (width - len(tokens))


@given(rows=ROWS, loss_on=st.sampled_from(["all", "response"]))
def test_collate_is_what_a_loop_over_tokens_gives(rows, loss_on):
    batch = collate(
        [
            row_of(
                number,
                [i for ids, _, _ in documents for i in ids],
                [len(ids) for ids, _, _ in documents],
                [source for _, source, _ in documents],
                [part for _, _, part in documents],
            )
            for number, documents in enumerate(rows)
        ],
        NUM_EMBEDDINGS,
        SOURCES,
        loss_on,
    )
    width = max(sum(len(ids) for ids, _, _ in documents) for documents in rows)
    expected = np.array([plain_row(documents, width, loss_on) for documents in rows])
    found = (batch.input_ids, batch.labels, batch.position_ids, batch.document_index, batch.source)
    wide, index, source = torch.int64, torch.int32, torch.int16
    assert [tensor.dtype for tensor in found] == [wide, wide, wide, index, source]
    for tensor, want in zip(found, np.moveaxis(expected, 2, 0), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), want)


@pytest.mark.parametrize("bad", [-1, NUM_EMBEDDINGS])
def test_the_row_of_a_bad_id_is_named(bad):
    rows = [row_of(3, [5, 6, 7], [3], ["a"]), row_of(4, [5, bad], [2], ["a"])]
    with pytest.raises(ContractError, match=rf"row 4 holds token ids .*{bad}"):
        collate(rows, NUM_EMBEDDINGS, SOURCES)


def test_a_batch_can_be_written_to_while_its_rows_stay(tmp_path):
    rows = ShardRows(write_shards(tmp_path), "train")
    before = rows[0].input_ids.tolist()
    batch = collate([rows[0]], NUM_EMBEDDINGS, rows.sources)
    for tensor in (batch.input_ids, batch.labels):
        tensor.fill_(1)
    assert batch.input_ids.data_ptr() != batch.labels.data_ptr()
    assert rows[0].input_ids.tolist() == before
