"""Statistics of a run, computed from its tables, receipts and the shard index."""

from pipeline.stats.accounts import encoded_seconds
from pipeline.stats.json_contract import stats_json
from pipeline.stats.model import Account, RunStats
from pipeline.stats.run import RunTally, full_stats, run_stats

__all__ = [
    "Account",
    "RunStats",
    "RunTally",
    "encoded_seconds",
    "full_stats",
    "run_stats",
    "stats_json",
]
