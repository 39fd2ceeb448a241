"""How far a run is, from the plan and the receipts alone."""

from __future__ import annotations

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
        receipts = [receipt for unit in units if (receipt := ledger.receipt(stage, unit))]
        rows.append(_row(stage, receipts, len(units)))
    order = ledger.receipt("interleave", ORDER_UNIT)
    names = [name[:-5] for name in ledger.storage.names("interleave") if name.endswith(".json")]
    receipts = [receipt for name in names if (receipt := ledger.receipt("interleave", name))]
    num_shards = int(order.measures["shards"]) if order else 0
    rows.append(_row("interleave", receipts, 1 + num_shards))
    return rows


def _row(stage: str, receipts: list[Receipt], num_units: int) -> dict[str, Any]:
    seconds = sum(receipt.seconds for receipt in receipts)
    left = max(0, num_units - len(receipts))
    rate = len(receipts) / seconds if seconds else 0.0
    return {
        "stage": stage,
        "done": len(receipts),
        "left": left,
        "records": sum(receipt.records_in for receipt in receipts),
        "kept": sum(receipt.kept for receipt in receipts),
        "seconds": seconds,
        "units_per_second": rate,
        "eta_seconds": left / rate if rate else None,
    }
