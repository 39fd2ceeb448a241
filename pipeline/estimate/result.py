"""What one stage will cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost.

    `measured` records took `seconds` of one worker; `amounts` are what they held, by unit
    (windows, audio seconds, tokens). `records` and `totals` are those of the corpus. `error` is the
    relative half-width of a 95 % interval of the work, from the spread between records and between
    units: 0 where all of them were measured, None where too few were to tell it. That the machine
    is busy at times is not in it. Hours are None where they cannot be told, and `note` says why.
    `disk_bytes` are those of the tables that the stage keeps, without receipts and excluded
    records.
    """

    stage: str
    measured: int
    seconds: float
    amounts: dict[str, float]
    records: float
    totals: dict[str, float]
    worker_hours: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    disk_bytes: float
    error: float | None = None
    note: str = ""

    def rates(self) -> dict[str, float]:
        """Return the records and amounts per second of one worker."""
        amounts = {"records": float(self.measured), **self.amounts}
        return {name: value / self.seconds for name, value in amounts.items() if self.seconds > 0}
