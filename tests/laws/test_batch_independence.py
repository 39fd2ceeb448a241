"""A clip's score and codes do not depend on the clips beside it, nor on how they are grouped."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from stages.clips import in_threads, prefetch
from stages.dnsmos.scorer import find_model
from stages.encode import EncodeStage
from stages.score import ScoreStage
from stages.settings import EncodeConfig, ScoreConfig
from stages.snac.codec import resolve_codec
from tests.stages.speech import clip_table, speech_24k

# The last is scored in three windows, the others in one; three share a padded length.
LENGTHS = (7_200, 14_336, 7_100, 7_300, 9_000)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> pa.Table:
    audios = {f"c{i}": speech_24k(n, 12_000 + 20_000 * i) for i, n in enumerate(LENGTHS)}
    return clip_table(tmp_path_factory.mktemp("clips"), audios)


@pytest.fixture(scope="module")
def score() -> ScoreStage:
    return ScoreStage(model=find_model())


@pytest.fixture(scope="module")
def scored(score, clips) -> pa.Table:
    return score.open()(clips).kept


@pytest.mark.law
def test_batch_of_one_equals_batch_of_n_scores(score, clips, scored):
    transform = score.open()
    alone = [transform(clips.slice(row, 1)).kept for row in range(clips.num_rows)]
    assert scored.num_rows == len(LENGTHS)
    assert pa.concat_tables(alone).equals(scored)


@pytest.mark.slow
@pytest.mark.law
def test_scores_ignore_worker_cpus(score, clips, scored):
    wide = ScoreStage(ScoreConfig(cpus_per_worker=2), score.model)
    assert wide.content == score.content
    assert wide.open()(clips).kept.equals(scored)


@pytest.mark.slow
@pytest.mark.law
def test_batch_of_one_equals_batch_of_n_codes(scored):
    spec = resolve_codec("untrained")
    stage = EncodeStage(spec, EncodeConfig(threshold_ovrl=0))
    one_by_one = stage.open()(scored).kept
    settings = EncodeConfig(threshold_ovrl=0, batch_seconds=20, cpus_per_worker=2)
    batched = EncodeStage(spec, settings).open()
    assert one_by_one.num_rows == len(LENGTHS)
    assert batched(scored).kept.equals(one_by_one)
    turned = pa.array(range(len(LENGTHS) - 1, -1, -1))
    assert batched(scored.take(turned)).kept.equals(one_by_one.take(turned))


def test_prefetching_keeps_order_works_ahead_and_is_bounded():
    taken = []

    def items():
        for item in range(20):
            taken.append((item, threading.current_thread().name))
            yield item

    seen = []
    for item in prefetch(items(), depth=3):
        seen.append(item)
        time.sleep(0.005)
        assert len(taken) <= len(seen) + 3
    assert seen == list(range(20))
    assert len({name for _, name in taken}) == 1
    assert taken[0][1] != threading.current_thread().name


def test_prefetching_raises_in_its_turn_and_stops_its_thread():
    closed = []

    def items():
        try:
            yield 1
            raise OSError("lost mount")
        finally:
            closed.append(True)

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="lost mount"):
        next(stream)

    def endless():
        try:
            while True:
                yield np.zeros(1)
        finally:
            closed.append(True)

    before = threading.active_count()
    stream = prefetch(endless())
    next(stream)
    stream.close()
    assert closed == [True, True]
    assert threading.active_count() == before


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_keep_the_order_and_stay_few_ahead(num_threads):
    begun, lock, done = [], threading.Lock(), 0

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        time.sleep(0.001 * (item % 3))
        return -item

    for place, result in enumerate(in_threads(work, iter(range(40)), num_threads)):
        assert result == -place
        done += 1
        assert len(begun) <= done + 2 * num_threads + 1
    assert done == 40


def test_a_thread_raises_in_its_items_turn():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    stream = in_threads(work, iter(range(5)), 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(stream)
