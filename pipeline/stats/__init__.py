"""Statistics of a run, computed from its tables, receipts and the shard index."""

from pipeline.stats.accounts import encoded_seconds
from pipeline.stats.json_contract import stats_json
from pipeline.stats.model import Account, RunStats
from pipeline.stats.run import (
    CountedUnits,
    RunTally,
    count_units,
    full_stats,
    run_stats,
    shown_stats,
)

__all__ = [
    "Account",
    "CountedUnits",
    "RunStats",
    "RunTally",
    "count_units",
    "encoded_seconds",
    "full_stats",
    "run_stats",
    "shown_stats",
    "stats_json",
]
