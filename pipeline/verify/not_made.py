"""What an incomplete run lacks: nothing contradicts itself there, but it is not proved."""

from __future__ import annotations

from koe.dataflow import CARD, INDEX, receipt_path, stage_chain
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.verify.order import RECEIPT


def not_made(plan: Plan, ledger: Ledger) -> list[str]:
    """Name what does not exist yet up to the shards: stages with their units, then files."""
    missing: dict[str, int] = {}
    for unit in plan.units:
        for stage in stage_chain(unit.modality):
            if ledger.storage.size(receipt_path(stage, unit.unit)) is None:
                missing[stage] = missing.get(stage, 0) + 1
    units = [f"{stage} of {number:,} units" for stage, number in missing.items()]
    files = [path for path in (RECEIPT, INDEX, CARD) if ledger.storage.size(path) is None]
    return units + files
