"""The two passes before the shards: what their units are made from, and how far they are.

The placements turn the order around; the exchange lays the pieces of each shard together, in one unit
for each group of units (see `pipeline/jobs/exchange.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from koe.dataflow import EXCHANGE, INTERLEAVE, ORDER_UNIT, PLACEMENTS_UNIT, exchange_unit
from koe.fingerprint import sha256_json
from pipeline.run_dir.ledger import Ledger, Receipt


@dataclass(frozen=True)
class PassStatus:
    """How far a pass is; the fields are those of `passes` in `koe status --json`.

    `done`, `left` and `working` count units. `left` is None while their number is not known: the
    placements say how many groups there are.
    """

    name: str
    done: int
    left: int | None
    working: int = 0


def made_from(order: Receipt) -> str:
    """Fingerprint what the placements are made from: the order, and the samples that it places.

    The order alone would not do: other samples of the same lengths have the same order.
    """
    return sha256_json([order.input_sha256, order.output.sha256])


def shards_of(placements: Receipt) -> list[str]:
    """Name the shards whose pieces the two passes bring, in the order of the segments."""
    return placements.content["shards"]


def groups_of(placements: Receipt) -> list[str]:
    """Name the units of the exchange: a segment of the placements for each, after those of the shards."""
    number = len(placements.segments) - 1 - len(shards_of(placements))
    return [exchange_unit(group) for group in range(number)]


def read_passes(
    ledger: Ledger, names: Collection[str], working: Collection[str]
) -> tuple[PassStatus, ...]:
    """Tell how far the passes are; nothing before they begin, and after the shards are made.

    `names`: the units of interleave that have a receipt. `working`: the name of the pass of each unit
    that is worked on. Making the placements removes the exchange of those before, so that what is
    there counts.
    """
    flying = {name: sum(one == name for one in working) for name in (PLACEMENTS_UNIT, EXCHANGE)}
    placements = _current_placements(ledger) if PLACEMENTS_UNIT in names else None
    if placements is None:
        first = PassStatus(PLACEMENTS_UNIT, 0, 1, flying[PLACEMENTS_UNIT])
        return (first, PassStatus(EXCHANGE, 0, None)) if flying[PLACEMENTS_UNIT] else ()
    groups = groups_of(placements)
    done = len(set(groups) & set(names))
    return (
        PassStatus(PLACEMENTS_UNIT, 1, 0),
        PassStatus(EXCHANGE, done, len(groups) - done, flying[EXCHANGE]),
    )


def _current_placements(ledger: Ledger) -> Receipt | None:
    units = [(INTERLEAVE, unit) for unit in (ORDER_UNIT, PLACEMENTS_UNIT)]
    order, placements = ledger.receipts(units)
    if order is None or placements is None or placements.input_sha256 != made_from(order):
        return None
    return placements
