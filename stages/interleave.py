"""Interleave: samples of both modalities become the rows of training shards.

`plan_order` (`stages/packing/order.py`) decides by the samples' lengths alone, so it is cheap to
repeat. The shards are then made in two passes over the tokens, so that the cost of a token does not
grow with the number of units and shards. The first pass reads a group of units
(`stages/packing/exchange.py`) and lays the pieces of each shard together; the second makes each
shard of its pieces from all groups (`stages/packing/pieces.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE
from koe.schema import PLACEMENT
from koe.stage import Resources
from stages.packing.pieces import ReadSamples, gather_pieces, lay_pieces
from stages.settings import InterleaveSettings

BYTES_PER_SAMPLE = 40  # while the order is made (`python -m benchmarks.driver_memory`)
VERSION = 3  # of the order and of the rows made from it; 3 pads one column of the shards otherwise


@dataclass(frozen=True)
class OrderStage:
    """What decides the order and the shards, for their receipts."""

    settings: InterleaveSettings
    identity: Mapping[str, Any]  # of codec and tokenizer, which the shards' metadata name
    name: str = INTERLEAVE
    version: int = VERSION
    samples: int = 0  # of the whole run, at most

    @property
    def content(self) -> dict[str, Any]:
        return self.settings.content() | dict(self.identity)

    @property
    def resources(self) -> Resources:
        return self.settings.resources

    @property
    def holding_all(self) -> Resources:
        """What a worker needs that holds all samples of the run at once."""
        needs = self.settings.resources
        more = BYTES_PER_SAMPLE * self.samples if needs.memory else 0
        return replace(needs, memory=needs.memory + more)


@dataclass(frozen=True)
class PlacementsStage:
    """What decides the placements, beside the order."""

    shards: tuple[str, ...]  # that are to be made, in the order of the stored order
    resources: Resources
    name: str = INTERLEAVE
    version: int = 1  # of the layout of its output

    @property
    def content(self) -> dict[str, Any]:
        return {"shards": list(self.shards)}


@dataclass(frozen=True)
class ExchangeStage:
    """What decides the pieces of a group of units, beside placements and samples: nothing."""

    resources: Resources
    name: str = INTERLEAVE
    version: int = 1  # of the layout of its output

    @property
    def content(self) -> dict[str, Any]:
        return {}


def gather_rows(
    order_slice: pa.Table, read_samples: ReadSamples, unit_names: Sequence[str]
) -> pa.Table:
    """Make the rows of one shard (ROW) from its slice of the order (ORDER), in both passes at once.

    `read_samples` returns the SAMPLE table of a unit by its index in the plan, and `unit_names`
    holds the units' names by that index.
    Raises: ContractError when order and samples do not fit each other.
    """
    columns = [order_slice[name] for name in ("unit", "sample", "start", "stop")]
    number = np.arange(order_slice.num_rows, dtype=np.int32)
    columns += [pa.array(np.zeros_like(number)), pa.array(number)]
    placements = pa.Table.from_arrays(columns, schema=PLACEMENT)
    parts = gather_pieces(placements, 1, read_samples, unit_names)
    return lay_pieces(order_slice, (part for part in parts if part.num_rows), unit_names)
