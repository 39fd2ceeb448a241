"""How far a run is, from the plan and the receipts alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.ledger import Ledger, Receipt
from pipeline.plan import Plan
from pipeline.schema import SPEECH
from pipeline.stats import LANES, ORDER_UNIT


def run_status(plan: Plan, ledger: Ledger) -> list[dict[str, Any]]:
    """Return a row a stage: units done and left, records, and the time left for one worker.

    The rate is that of one worker over the units done; more workers finish sooner.
    """
    rows = []
    for stage in LANES[SPEECH]:
        units = [unit.unit for unit in plan.units if stage in LANES[unit.modality]]
        rows.append(_row(stage, (ledger.receipt(stage, unit) for unit in units), len(units)))
    order = ledger.receipt("interleave", ORDER_UNIT)
    names = [name[:-5] for name in ledger.storage.names("interleave") if name.endswith(".json")]
    num_shards = int(order.measures["shards"]) if order else 0
    receipts = (ledger.receipt("interleave", name) for name in names)
    rows.append(_row("interleave", receipts, 1 + num_shards))
    return rows


def _row(stage: str, receipts: Iterable[Receipt | None], num_units: int) -> dict[str, Any]:
    done = records = kept = 0
    seconds = 0.0
    for receipt in receipts:
        if receipt is not None:
            done += 1
            records += receipt.records_in
            kept += receipt.kept
            seconds += receipt.seconds
    left = max(0, num_units - done)
    rate = done / seconds if seconds else 0.0
    return {
        "stage": stage,
        "done": done,
        "left": left,
        "records": records,
        "kept": kept,
        "seconds": seconds,
        "units_per_second": rate,
        "eta_seconds": left / rate if rate else None,
    }
