"""What each node of a cluster has done, from the receipts, and what it works on now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from koe.numbers import clock_time, short
from pipeline.execution.rates import UnitWork, recent_rates

UNNAMED = "(not recorded)"  # by receipts from before nodes were


@dataclass(frozen=True)
class NodeStatus:
    """What a node has to do with a stage; the fields are those of `nodes` in `koe status --json`.

    `done` counts the units that count now, `working` those in flight, one for each worker that is not
    idle. `units_per_second` and `rates` are those of all its workers together, as recent receipts
    have them; None or empty when none was written. `seconds_ago` is when it was last heard of: when
    it finished or began a unit.
    """

    node: str
    done: int = 0
    working: int = 0
    seconds: float = 0.0
    units_per_second: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    seconds_ago: float | None = None


@dataclass(frozen=True)
class Working:
    """A unit in flight: on which node, and since when (seconds since 1970)."""

    node: str
    since: float


def nodes_of(
    stage: str, done: Collection[tuple[str, UnitWork]], working: Collection[Working], now: float
) -> list[NodeStatus]:
    """Sum up a stage by node, sorted by name; `done` holds a node and its work for each unit."""
    works: defaultdict[str, list[UnitWork]] = defaultdict(list)
    begun: defaultdict[str, list[float]] = defaultdict(list)
    for node, work in done:
        works[node].append(work)
    for unit in working:
        begun[unit.node].append(unit.since)
    return [_node(stage, node, works[node], begun[node], now) for node in sorted({*works, *begun})]


def _node(
    stage: str, node: str, works: list[UnitWork], begun: list[float], now: float
) -> NodeStatus:
    rates = recent_rates(stage, works, now)
    per_second = rates.pop("units", None)
    return NodeStatus(
        node=node or UNNAMED,
        done=len(works),
        working=len(begun),
        seconds=round(sum(work.seconds for work in works), 3),
        units_per_second=per_second,
        rates=rates,
        seconds_ago=max(0.0, now - max([work.ended for work in works] + begun)),
    )


def nodes_table(stages: Mapping[str, Sequence[NodeStatus]]) -> Table | None:
    """Render one row per node, or nothing where a single machine has done everything.

    A cell is the units done and, after +, those in flight.
    """
    by_node: defaultdict[str, dict[str, NodeStatus]] = defaultdict(dict)
    for stage, nodes in stages.items():
        for found in nodes:
            by_node[found.node][stage] = found
    if len(by_node) < 2:
        return None
    shown = [stage for stage, nodes in stages.items() if nodes]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    for head in (*shown, "units/min", "last seen"):
        table.add_column(head, justify="right", no_wrap=True)
    for node in sorted(by_node):
        found = by_node[node]
        rates = [status.units_per_second for status in found.values()]
        known = [rate for rate in rates if rate is not None]
        ages = [status.seconds_ago for status in found.values() if status.seconds_ago is not None]
        table.add_row(
            Text(node),
            *(_cell(found.get(stage)) for stage in shown),
            short(60 * sum(known)) if known else "-",
            f"{clock_time(min(ages))} ago" if ages else "-",
        )
    return table


def _cell(status: NodeStatus | None) -> str:
    if status is None:
        return ""
    return short(status.done) + (f" +{status.working}" if status.working else "")
