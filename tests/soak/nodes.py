"""Nodes of a Ray cluster that are lost while a run works on them, and others that come instead."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.runs import Case, Differs, Whole, complete, count_files, wait_until
from tests.soak.table import SAME, Report

_STRIDE = 12  # files until the next node is lost, at most
_TRIES = 4


@dataclass
class Nodes:
    """A cluster of one head and some nodes, each with a raylet of its own on this machine."""

    cluster: Any
    others: list[Any]

    def replace_one(self, rng: random.Random) -> None:
        """Kill the raylet of a node, and with it its workers; another node joins."""
        lost = self.others.pop(rng.randrange(len(self.others)))
        self.cluster.remove_node(lost, allow_graceful=False)
        self.others.append(self.cluster.add_node(num_cpus=1))


@contextmanager
def ray_nodes(number: int) -> Iterator[Nodes]:
    """Start a head with two CPUs, and this many nodes of one CPU each."""
    cluster = _head()
    try:
        yield Nodes(cluster, [cluster.add_node(num_cpus=1) for _ in range(number)])
    finally:
        cluster.shutdown()


def _head() -> Any:
    """Start a head; Ray gives it 30 s, which on a loaded machine are sometimes too few."""
    from ray.cluster_utils import Cluster

    for _ in range(_TRIES - 1):
        try:
            return Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        except Exception as error:  # Ray raises this class itself
            if "timed out" not in str(error):
                raise
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 2})


def lose_nodes(
    report: Report,
    make_case: Callable[[tuple[str, ...]], Case],
    whole: Whole,
    number: int,
    rng: random.Random,
) -> None:
    """Lose `number` nodes in all, up to two in each run."""
    left = number
    while left > 0:
        lost: list[int] = []
        most = min(left, 2)
        report.run(
            "nodes",
            "a node, another joins",
            lambda lost=lost, most=most: _lose(make_case, whole, most, lost, rng),
            lambda lost=lost: sum(lost),
        )
        left -= max(1, sum(lost))


def _lose(
    make_case: Callable[[tuple[str, ...]], Case],
    whole: Whole,
    most: int,
    lost: list[int],
    rng: random.Random,
) -> str:
    with ray_nodes(2) as nodes:
        case = make_case(("engine=ray", f"ray.address={nodes.cluster.address}"))
        process, run_dir = case.start(), Path(case.run_dir)
        try:
            while len(lost) < most:
                moment = count_files(run_dir) + rng.randint(1, _STRIDE)
                if not wait_until(lambda m=moment: count_files(run_dir) >= m, process):
                    break
                nodes.replace_one(rng)
                lost.append(1)
            code = case.wait(process)
            if code not in (0, 1):
                raise Differs(f"after {len(lost)} lost nodes a run ended with {code}")
            complete(case, whole)
        finally:
            case.sweep_processes()
    return SAME
