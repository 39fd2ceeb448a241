"""What fits on which node, compared with trying every placement."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.placement import (
    describe,
    describe_nodes,
    fit_together,
    max_workers,
    missing,
    num_fitting,
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
