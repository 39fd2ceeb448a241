"""Law: after the loss of a node Ray Train goes on with the workers that are left, in the same order of rows
and with the same rows in each step."""

from __future__ import annotations

import threading

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.cluster_utils import Cluster

from koe.errors import ConfigError
from koe.ray_session import ray_session
from tests.laws.test_training_stops import config_for
from tests.training.helpers import one_thread, small_config, small_shards
from tests.training.started import steps_in
from training import loop
from training.data.loader import split_rows
from training.launch import launch
from training.metrics import read_events, read_metrics
from training.model.distributed import Ranks, single
from training.run import require_world

__all__ = ["one_thread"]

STEPS = 40


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 4), st.data())
def test_each_world_that_is_allowed_takes_the_rows_of_a_step_in_equal_shares(
    workers, accumulation, rows, data
):
    least = data.draw(st.integers(1, workers))
    config = small_config(
        launcher="ray",
        workers=workers,
        min_workers=least,
        accumulation_steps=accumulation,
        micro_batch_rows=rows,
    )
    assert config.worlds[-1] == workers
    assert config.worlds[0] >= least
    numbers = list(range(config.rows_per_step))
    for world in range(1, workers + 1):
        shares = [split_rows(numbers, rank, world, rows) for rank in range(world)]
        equal = len({len(share) for share in shares}) == 1
        assert (world in config.worlds) == (equal and world >= least)
        ranks = Ranks(0, world, single("cpu").device)
        if world in config.worlds:
            require_world(config, ranks)
            taken = [row for turn in zip(*shares, strict=True) for part in turn for row in part]
            assert taken == numbers
        else:
            with pytest.raises(ConfigError, match=f"{world} processes run"):
                require_world(config, ranks)


def test_a_minimum_of_workers_above_their_number_is_refused():
    with pytest.raises(ValidationError, match="min_workers 3 is more than workers 2"):
        small_config(launcher="ray", workers=2, min_workers=3)


@pytest.fixture
def two_nodes():
    """Join two nodes with a CPU each, both of this machine; yield what takes the second one away."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        quiet = ray.LoggingConfig(log_level="ERROR")
        with ray_session(cluster.address, None, {}, logging_config=quiet):
            yield lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.law
def test_a_lost_node_costs_the_steps_since_the_checkpoint_and_nothing_else(two_nodes, tmp_path):
    shards, out = small_shards(tmp_path / "shards", num_rows=60), tmp_path / "out"
    settings = {"max_steps": STEPS, "checkpoint_every_steps": 5, "cpus_per_worker": 1}
    ended = threading.Event()

    def lose() -> None:
        while steps_in(out) < 12:
            if ended.wait(0.005):
                return
        two_nodes()

    loser = threading.Thread(target=lose)
    loser.start()
    try:
        result = launch(config_for(2, launcher="ray", min_workers=1, **settings), shards, out)
    finally:
        ended.set()
        loser.join()
    assert result.steps == STEPS
    started = [event for event in read_events(out) if event["event"] == "started"]
    assert [event["workers"] for event in started] == [2, 1]
    assert started[1]["step"] >= 5
    loop.train(config_for(1, **settings), shards, tmp_path / "whole", single("cpu"))
    for row, other in zip(read_metrics(out), read_metrics(tmp_path / "whole"), strict=True):
        assert (row["step"], row["tokens"]) == (other["step"], other["tokens"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
