"""Statistics of a run, computed from its tables, receipts and the shard index."""

from pipeline.stats.accounts import (
    account_sources,
    encoded_seconds,
)
from pipeline.stats.json_contract import stats_json
from pipeline.stats.model import Account, RunStats
from pipeline.stats.run import full_stats, run_stats
from pipeline.stats.scores import WHAT_IF_OVRL

__all__ = [
    "WHAT_IF_OVRL",
    "Account",
    "RunStats",
    "account_sources",
    "encoded_seconds",
    "full_stats",
    "run_stats",
    "stats_json",
]
