"""The part of a machine that is named as short is the one of which more shortens a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.stage import Resources
from pipeline.estimate.machine import (
    CORES,
    GPUS,
    READING,
    Machine,
    StageLoad,
    better_cpus,
    bottlenecks,
    loads,
    on_machine,
    seconds_on,
)

SECONDS = st.floats(1.0, 1e6)
NEEDS = st.builds(
    Resources,
    cpus=st.sampled_from([0.25, 1.0, 2.0, 7.0]),
    gpus=st.sampled_from([0.0, 0.0, 0.25, 0.4, 1.0, 2.0]),
    workers=st.sampled_from([None, None, 1, 3, 40]),
)
STAGE = st.builds(StageLoad, st.just(""), NEEDS, SECONDS, SECONDS, st.floats(0, 1e12))
STAGES = st.lists(STAGE, min_size=1, max_size=4).map(
    lambda found: [replace(stage, stage=f"stage{k}") for k, stage in enumerate(found)]
)
MACHINES = st.builds(
    Machine,
    cores=st.integers(1, 96).map(float),
    gpus=st.integers(1, 16).map(float),
    read_bytes_per_second=st.none() | st.floats(1e6, 1e10),
)


def with_more(
    name: str, stages: list[StageLoad], machine: Machine
) -> tuple[list[StageLoad], Machine]:
    """Return a run on a machine with twice of one part, or with a fixed pool twice as large."""
    if name == CORES:
        return stages, replace(machine, cores=2 * machine.cores)
    if name == GPUS:
        return stages, replace(machine, gpus=2 * machine.gpus)
    if name == READING:
        assert machine.read_bytes_per_second
        return stages, replace(machine, read_bytes_per_second=2 * machine.read_bytes_per_second)
    larger = [
        replace(one, resources=replace(one.resources, workers=2 * one.resources.workers))
        if one.resources.workers and name == f"the workers of {one.stage}"
        else one
        for one in stages
    ]
    assert larger != stages
    return larger, machine


@given(STAGES, MACHINES)
def test_more_of_what_is_short_shortens_a_run_and_more_of_nothing_else(stages, machine):
    before, short = seconds_on(stages, machine), bottlenecks(stages, machine)
    assert short
    more = stages, machine
    for name in short:
        more = with_more(name, *more)
    assert seconds_on(*more) < before
    for name in loads(stages, machine):
        if [name] != list(short):
            assert seconds_on(*with_more(name, stages, machine)) == pytest.approx(before)


@given(STAGES, MACHINES, st.floats(1.1, 10))
def test_a_run_of_more_records_takes_as_much_longer(stages, machine, times):
    longer = [
        replace(
            one,
            worker_seconds=one.worker_seconds * times,
            decode_seconds=one.decode_seconds * times,
            read_bytes=one.read_bytes * times,
        )
        for one in stages
    ]
    assert seconds_on(longer, machine) == pytest.approx(times * seconds_on(stages, machine))
    assert bottlenecks(longer, machine) == bottlenecks(stages, machine)


@settings(deadline=None)
@given(STAGES, MACHINES)
def test_the_cpus_that_are_advised_never_make_a_run_slower(stages, machine):
    found = on_machine(stages, machine)
    assert found.seconds_then <= found.seconds * (1 + 1e-9)
    assert set(found.cpus) <= {one.stage for one in stages if one.on_gpu}
    assert bool(found.cpus) == (found.seconds_then < 0.99 * found.seconds)


@settings(deadline=None)
@given(STAGE.filter(lambda one: one.on_gpu), MACHINES)
def test_no_other_number_of_cpus_is_faster_for_one_stage(stage, machine):
    found = on_machine([stage], machine)
    for cpus in range(1, int(machine.cores) + 1):
        other = seconds_on([stage.with_cpus(float(cpus))], machine)
        assert found.seconds_then <= other / 0.99


@given(STAGE.filter(lambda one: one.on_gpu), MACHINES)
def test_a_gpu_waits_exactly_where_more_threads_let_a_worker_end_earlier(stage, machine):
    fed = stage.with_cpus(1e9)
    assert stage.waits_for_decoding == (fed.own_seconds() < stage.own_seconds() * (1 - 1e-9))
    assert not fed.waits_for_decoding


def test_without_what_a_stage_needs_a_run_never_ends():
    stage = StageLoad("score", Resources(gpus=1.0), 10.0)
    found = on_machine([stage], Machine(cores=8))
    assert found.seconds == math.inf
    assert found.short == (GPUS,)
    assert not found.cpus
    assert on_machine([], Machine(8)).seconds == 0


def test_the_parts_add_up_as_on_paper():
    """Two GPUs; score is fed by a thread for each core, encode has all that it needs."""
    score = StageLoad("score", Resources(cpus=1.0, gpus=1.0), 1000.0, decode_seconds=6000.0)
    encode = StageLoad("encode", Resources(cpus=1.0, gpus=1.0), 3000.0, decode_seconds=1500.0)
    machine = Machine(cores=16, gpus=2)
    # four threads for each GPU, so score's worker takes 1,500 s
    assert loads([score, encode], machine) == {
        GPUS: (1500 + 3000) / 2,
        CORES: (6000 + 1000 + 1500 + 3000) / 16,
    }
    assert (score.waits_for_decoding, encode.waits_for_decoding) == (True, False)
    assert (score.cores_per_gpu, encode.cores_per_gpu) == (7.0, 1.5)
    found = on_machine([score, encode], machine)
    assert found.cpus == {"score": 6}
    assert (found.seconds, found.seconds_then) == (2250, 2000)
    assert found.short_then == (GPUS,)
    on_eight = replace(machine, cores=4)
    assert bottlenecks([score, encode], on_eight) == (CORES,)
    assert better_cpus([score, encode], on_eight) == {}


def test_two_stages_share_the_only_gpu():
    alone = Resources(cpus=1.0, gpus=1.0, shares_gpu=True)
    stages = [StageLoad("score", alone, 1000.0), StageLoad("encode", alone, 3000.0)]
    assert seconds_on(stages, Machine(cores=8, gpus=1)) == 4000
    assert seconds_on(stages, Machine(cores=8, gpus=2)) == 2000


def test_a_cluster_is_the_sum_of_its_nodes():
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}]
    assert Machine.of(nodes) == Machine(cores=12.0, gpus=2.0)
