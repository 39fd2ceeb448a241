"""Which workers fit on which nodes, by what each needs and each has; memory is in bytes.

Ray places a worker on one node as a whole: CPUs of two nodes cannot be put together, nor can parts of
two GPUs. So what a cluster has in sum does not tell what it can hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from koe.stage import Resources

Amounts = Mapping[
    str, float
]  # by Ray's names: CPU, GPU, memory, and those of `ray start --resources`

_GPU = "GPU"
_SLACK = 1e-6  # amounts are sums of fractions


@dataclass(frozen=True)
class Free:
    """What is left of a node: of each of its GPUs, and of everything else."""

    gpus: tuple[float, ...]
    others: tuple[tuple[str, float], ...]

    @staticmethod
    def of(node: Amounts) -> Free:
        others = tuple(sorted((name, value) for name, value in node.items() if name != _GPU))
        return Free((1.0,) * int(node.get(_GPU, 0)), others)

    def without(self, need: Amounts) -> Free | None:
        """Return what a worker leaves; None where it does not fit."""
        others = dict(self.others)
        for name, amount in need.items():
            if name == _GPU:
                continue
            others[name] = others.get(name, 0.0) - amount
            if others[name] < -_SLACK:
                return None
        gpus = _take_gpus(self.gpus, need.get(_GPU, 0.0))
        return None if gpus is None else Free(gpus, tuple(sorted(others.items())))


def _take_gpus(gpus: tuple[float, ...], amount: float) -> tuple[float, ...] | None:
    """Take whole GPUs, or a part of the fullest one that has it."""
    left = sorted(gpus)
    parts = [1.0] * int(amount) if amount >= 1 else [amount] if amount else []
    for part in parts:
        place = next((k for k, free in enumerate(left) if free + _SLACK >= part), None)
        if place is None:
            return None
        left[place] -= part
    return tuple(sorted(left))


def num_fitting(need: Amounts, node: Amounts) -> int:
    """Return how many workers of one stage a node holds by itself."""
    limits = [
        (node.get(name, 0.0) + _SLACK) / amount for name, amount in need.items() if name != _GPU
    ]
    if gpus := need.get(_GPU, 0.0):
        has = int(node.get(_GPU, 0))
        limits.append(has / gpus if gpus >= 1 else has * int((1 + _SLACK) / gpus))
    return int(min(limits, default=math.inf)) if limits else 0


def max_workers(need: Amounts, nodes: Iterable[Amounts]) -> int:
    """Return how many workers of one stage the nodes hold together."""
    return sum(num_fitting(need, node) for node in nodes)


def fit_together(needs: Sequence[Amounts], nodes: Iterable[Amounts]) -> bool:
    """Say whether one worker of every stage fits at the same time."""
    return _fit([Free.of(node) for node in nodes], sorted(needs, key=_scarcity, reverse=True))


def _scarcity(need: Amounts) -> tuple[float, ...]:
    return need.get(_GPU, 0.0), float(len(need)), need.get("CPU", 0.0), need.get("memory", 0.0)


def _fit(free: Sequence[Free], needs: Sequence[Amounts]) -> bool:
    if not needs:
        return True
    for node in dict.fromkeys(free):  # nodes with the same left are tried once
        left = node.without(needs[0])
        if left is not None:
            place = free.index(node)
            if _fit([*free[:place], left, *free[place + 1 :]], needs[1:]):
                return True
    return False


def sharing_gpus(chain: Mapping[str, Resources], nodes: Sequence[Amounts]) -> dict[str, Resources]:
    """Give the stages that may share a GPU the largest equal part with which one worker of each fits.

    Where none does, it is something else that is missing, and they stay as they are.
    """
    sharing = sum(needs.shares_gpu for needs in chain.values())
    for parts in range(1, sharing + 1):
        shared = {
            stage: replace(needs, gpus=needs.gpus / parts) if needs.shares_gpu else needs
            for stage, needs in chain.items()
        }
        if fit_together([needs.amounts() for needs in shared.values()], nodes):
            return shared
    return dict(chain)


def missing(stages: Mapping[str, Amounts], nodes: Sequence[Amounts]) -> str:
    """Say which stage no node can hold a worker of, or that they do not fit together; empty if all do."""
    for stage, need in stages.items():
        if not max_workers(need, nodes):
            return f"no node can hold a worker of {stage}, which asks for {describe(need)}"
    if fit_together(list(stages.values()), nodes):
        return ""
    all_needs = "; ".join(f"{stage} {describe(need)}" for stage, need in stages.items())
    return f"the nodes cannot hold one worker of every stage at the same time ({all_needs})"


def describe(amounts: Amounts) -> str:
    """Write amounts for a person: `4 CPUs, 1 GPU, 2.5 GB of memory, 1 of fast_disk`."""
    parts = []
    for name, amount in amounts.items():
        if name in ("CPU", _GPU):
            parts.append(f"{amount:g} {name}{'' if amount == 1 else 's'}")
        elif name == "memory":
            parts.append(f"{amount / 1e9:.3g} GB of memory")
        else:
            parts.append(f"{amount:g} of {name}")
    return ", ".join(parts) or "nothing"


def describe_nodes(nodes: Sequence[Amounts], names: Iterable[str]) -> str:
    """Count nodes that have the same of what is asked for: `2 nodes of 2 CPUs, 8 GB of memory`."""
    wanted = list(names)
    counts: dict[str, int] = {}
    for node in nodes:
        has = describe({name: node[name] for name in wanted if node.get(name)})
        counts[has] = counts.get(has, 0) + 1
    return "; ".join(
        f"{number} node{'' if number == 1 else 's'} of {has}" for has, number in counts.items()
    )
