"""What a local Ray has to offer, and whether the nodes of a cluster can hold a run's workers."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from koe.errors import ConfigError
from koe.ray_session import ray_session
from koe.stage import Resources
from pipeline.execution.placement import Amounts, describe_nodes, missing, sharing_gpus

# Stages that work at the same time, by their names; a run has one such chain after another.
Chain = Mapping[str, Resources]

_OBJECT_STORE_SHARE = 0.3  # of the memory, which Ray keeps for the objects that it passes on
_PLENTY = 1e6  # of a resource that tells nodes apart, where there is one machine only
_POLL_SECONDS = 2.0


def local_options(num_cpus: int | None, chains: Sequence[Chain]) -> dict[str, Any]:
    """Return what a local Ray offers: all of the machine, and room for one worker of every stage.

    On a small machine stages then take turns instead of waiting forever.
    """
    from ray._private.utils import estimate_available_memory  # within the limits of a container

    free = (1 - _OBJECT_STORE_SHARE) * estimate_available_memory()
    others = {name for chain in chains for needs in chain.values() for name in needs.others}
    return {
        "num_cpus": max(num_cpus or os.cpu_count() or 1, math.ceil(_most(chains, "CPU"))),
        "_memory": math.ceil(max(free, _most(chains, "memory"))),
        "resources": dict.fromkeys(sorted(others), _PLENTY),
    }


def _most(chains: Sequence[Chain], name: str) -> float:
    sums = (sum(needs.amounts().get(name, 0.0) for needs in chain.values()) for chain in chains)
    return max(sums, default=0.0)


def live_nodes() -> list[Amounts]:
    """Return what each living node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_at(address: str | None) -> list[Amounts]:
    """Join a Ray for a moment; return what each of its living nodes has.

    Raises: ConfigError when it cannot be reached.
    """
    with ray_session(address, None, {}, logging_level=logging.ERROR, log_to_driver=False):
        return live_nodes()


def with_the_driver() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the node of this process: what a run cannot go on without ends with it alone."""
    here = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(here, soft=False)


def may_grow() -> bool:
    """Say whether nodes can be added: a local Ray cannot be reached by any."""
    addresses = [ipaddress.ip_address(node["NodeManagerAddress"]) for node in ray.nodes()]
    return not all(address.is_loopback for address in addresses)


def require_room(
    chains: Sequence[Chain], wait_minutes: float, say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until the cluster can hold one worker of every stage of each chain, node by node.

    An autoscaling cluster is asked for what is missing.
    Raises: ConfigError when it still cannot after `wait_minutes`.
    """
    with _asking_for_nodes() as ask:
        for chain in chains:
            _wait_for(chain, wait_minutes, say, ask)


def _wait_for(
    chain: Chain,
    wait_minutes: float,
    say: Callable[[str], None],
    ask: Callable[[Sequence[Amounts]], None],
) -> None:
    end = time.monotonic() + 60 * wait_minutes
    asked = False
    while True:
        nodes = live_nodes()
        needs = {stage: found.amounts() for stage, found in sharing_gpus(chain, nodes).items()}
        if not (what := missing(needs, nodes)):
            return
        names = dict.fromkeys(name for need in needs.values() for name in need)
        has = f"the cluster has {describe_nodes(nodes, names)}"
        if time.monotonic() >= end:
            waited = f", and none was added within {wait_minutes:g} minutes" if wait_minutes else ""
            raise ConfigError(
                what,
                has + waited,
                "Add nodes that can, or lower cpus_per_worker, gpus_per_worker, "
                "memory_gigabytes_per_worker or resources_per_worker of the stage. If the cluster "
                "adds nodes by itself, set ray.wait_minutes.",
            )
        if not asked:
            asked = True
            ask(list(needs.values()))
            say(f"{what}; {has}: waiting up to {wait_minutes:g} minutes for more nodes")
        time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))


@contextmanager
def _asking_for_nodes() -> Iterator[Callable[[Sequence[Amounts]], None]]:
    """Yield a function that asks the autoscaler for room; what was asked is taken back at the end.

    Where there is no autoscaler nobody answers.
    """
    from ray.autoscaler.sdk import request_resources

    asked = False

    def ask(needs: Sequence[Amounts]) -> None:
        nonlocal asked
        asked = True
        request_resources(bundles=[dict(need) for need in needs])

    try:
        yield ask
    finally:
        if asked:
            request_resources(num_cpus=0)
