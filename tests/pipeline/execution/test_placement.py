"""What fits on which node, compared with trying every placement."""

from dataclasses import replace
from itertools import product

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from koe.settings import WorkerConfig
from koe.stage import Resources
from pipeline.execution.placement import (
    describe,
    describe_nodes,
    fit_together,
    max_workers,
    missing,
    num_fitting,
    sharing_gpus,
)

AMOUNTS = st.fixed_dictionaries(
    {"CPU": st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])},
    optional={
        "GPU": st.sampled_from([0.25, 0.4, 0.5, 1.0, 2.0]),
        "memory": st.sampled_from([1e9, 2.5e9, 8e9]),
        "fast_disk": st.sampled_from([1.0, 2.0]),
    },
)
NODES = st.lists(
    st.fixed_dictionaries(
        {"CPU": st.sampled_from([0.0, 1.0, 2.0, 4.0])},
        optional={
            "GPU": st.sampled_from([1.0, 2.0]),
            "memory": st.sampled_from([1e9, 4e9, 16e9]),
            "fast_disk": st.sampled_from([1.0, 3.0]),
        },
    ),
    max_size=3,
)


def fits(needs, nodes):
    """Try every node, and every GPU of it, for every worker."""

    def holds(placing):
        left = [{**node, "GPU": [1.0] * int(node.get("GPU", 0))} for node in nodes]
        for need, (place, gpu) in zip(needs, placing, strict=True):
            node = left[place]
            for name, amount in need.items():
                if name != "GPU":
                    node[name] = node.get(name, 0.0) - amount
                    if node[name] < -1e-9:
                        return False
            gpus = need.get("GPU", 0.0)
            chosen = range(gpu, gpu + max(1, int(gpus))) if gpus else ()
            for place in chosen:
                if place >= len(node["GPU"]) or node["GPU"][place] < min(gpus, 1.0) - 1e-9:
                    return False
                node["GPU"][place] -= min(gpus, 1.0)
        return True

    places = list(product(range(len(nodes)), range(2)))
    return any(holds(placing) for placing in product(places, repeat=len(needs)))


@given(st.lists(AMOUNTS, min_size=1, max_size=3), NODES)
def test_workers_fit_together_when_a_placement_exists(needs, nodes):
    assert fit_together(needs, nodes) == fits(needs, nodes)


@given(AMOUNTS, NODES)
def test_a_node_holds_as_many_workers_as_fit_on_it(need, nodes):
    for node in nodes:
        held = num_fitting(need, node)
        assert fit_together([need] * min(held, 4), [node])
        if held < 4:
            assert not fit_together([need] * (held + 1), [node])
    assert max_workers(need, nodes) == sum(num_fitting(need, node) for node in nodes)


STAGES = st.lists(
    st.builds(
        lambda cpus, gpus, on_gpu: WorkerConfig(
            cpus_per_worker=cpus, gpus_per_worker=gpus, memory_gigabytes_per_worker=0
        ).resources_with(on_gpu),
        st.sampled_from([0.25, 1.0, 2.0]),
        st.sampled_from([0.0, 0.0, 0.25, 1.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@given(STAGES, NODES)
def test_stages_share_a_gpu_only_where_each_cannot_have_one(stages, nodes):
    chain = {f"stage{k}": needs for k, needs in enumerate(stages)}
    shared = sharing_gpus(chain, nodes)
    parts = {
        needs.gpus for stage, needs in shared.items() if chain[stage].shares_gpu
    }  # an equal part for each
    assert len(parts) <= 1
    for stage, needs in shared.items():  # what was set stays, and so does all but the GPU
        assert needs == (
            replace(chain[stage], gpus=needs.gpus) if chain[stage].shares_gpu else chain[stage]
        )

    def with_part(part):
        return [
            replace(needs, gpus=part).amounts() if needs.shares_gpu else needs.amounts()
            for needs in stages
        ]

    tried = [1 / k for k in range(1, sum(needs.shares_gpu for needs in stages) + 1)]
    fitting = [part for part in tried if fits(with_part(part), nodes)]
    assert parts <= {max(fitting, default=1.0)}


def test_one_gpu_is_enough_for_two_stages_and_two_are_divided():
    alone = WorkerConfig(memory_gigabytes_per_worker=0).resources_with(gpu=True)
    chain = {"ingest": Resources(cpus=0.25), "score": alone, "encode": alone}

    def gpus(node):
        return [needs.gpus for needs in sharing_gpus(chain, [node]).values()]

    assert gpus({"CPU": 8.0, "GPU": 1.0}) == [0.0, 0.5, 0.5]
    assert gpus({"CPU": 8.0, "GPU": 2.0}) == [0.0, 1.0, 1.0]
    assert gpus({"CPU": 8.0}) == gpus({"CPU": 1.0, "GPU": 8.0}) == [0.0, 1.0, 1.0]  # then refused


@given(st.floats(0, 10) | st.integers(0, 64).map(float))
def test_the_parts_of_gpus_that_are_accepted_are_those_of_ray(gpus):
    def accepts(function):
        try:
            function()
        except ValueError:
            return False
        return True

    # above one Ray says it when a worker is to be placed, and this before any work
    rays = accepts(lambda: ray.remote(num_gpus=gpus)(int)) and (gpus <= 1 or gpus.is_integer())
    assert accepts(lambda: WorkerConfig(gpus_per_worker=gpus)) == rays


def test_cpus_of_two_nodes_are_not_put_together():
    small = [{"CPU": 2.0, "memory": 8e9}] * 10
    stages = {"ingest": {"CPU": 1.0}, "score": {"CPU": 4.0, "memory": 1e9}}
    assert missing(stages, small) == (
        "no node can hold a worker of score, which asks for 4 CPUs, 1 GB of memory"
    )
    assert missing(stages, [*small, {"CPU": 4.0, "memory": 8e9}]) == ""
    assert missing({"score": {"memory": 9e9}}, small)
    both = {"ingest": {"CPU": 1.0}, "score": {"CPU": 1.0}}
    assert "at the same time" in missing(both, [{"CPU": 1.0}])
    assert missing(both, [{"CPU": 1.0}] * 2) == ""
    assert missing({"ingest": {"CPU": 1.0}}, []).startswith("no node")


@pytest.mark.parametrize("nodes", [2, 1000])
def test_a_large_cluster_is_checked_at_once(nodes):
    stages = {f"stage{k}": {"CPU": 1.0, "GPU": 0.5} for k in range(6)}
    assert missing(stages, [{"CPU": 64.0}] * nodes)
    assert missing(stages, [{"CPU": 1.0, "GPU": 1.0}] * 5 + [{"CPU": 64.0}] * nodes)
    assert not missing(stages, [{"CPU": 1.0, "GPU": 1.0}] * 6 + [{"CPU": 64.0}] * nodes)


def test_amounts_and_nodes_are_said_in_words():
    assert describe({"CPU": 1.0, "GPU": 2.0, "memory": 2.5e9, "disk": 1.0}) == (
        "1 CPU, 2 GPUs, 2.5 GB of memory, 1 of disk"
    )
    nodes = [{"CPU": 2.0, "node:10.0.0.1": 1.0}, {"CPU": 2.0}, {"CPU": 8.0}]
    assert describe_nodes(nodes, ["CPU"]) == "2 nodes of 2 CPUs; 1 node of 8 CPUs"
