"""The one table of stages: their order, what each makes and is measured in, and the run's files.

Whatever needs to know which stages exist asks here, so a new stage is one more entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from koe.errors import ContractError
from koe.schema import CLIP, ENCODED, EXCLUDED, ORDER, ROW, SAMPLE, SCORED, SPEECH, TEXT


@dataclass(frozen=True)
class StageEntry:
    """What any module may know about a stage without importing it.

    `chains`: the modalities whose units pass through it; none for a stage of the run as a whole.
    `output`: the schema of its tables; None where it makes no tables. `rates`: the measures of its
    receipts that progress and status show per second. A stage that only passes a quantity on (encode
    knows its clips' windows) has no rate for it. `work`: the measure that its cost is proportional
    to, by which `koe plan` scales a sample; empty where there is none (ingest reads headers).
    """

    name: str
    chains: tuple[str, ...] = ()
    output: pa.Schema | None = None
    rates: tuple[str, ...] = ()
    work: str = ""


INTERLEAVE = "interleave"
TRAIN = "train"

# In the order of the data. A modality's chain is the stages that name it, in this order.
TABLE = (
    StageEntry("ingest", (SPEECH,), CLIP, rates=("seconds",)),
    StageEntry("score", (SPEECH,), SCORED, rates=("windows", "seconds"), work="windows"),
    StageEntry("encode", (SPEECH,), ENCODED, rates=("seconds",), work="seconds"),
    StageEntry("tokenize", (SPEECH, TEXT), SAMPLE, rates=("tokens",), work="tokens"),
    StageEntry(INTERLEAVE, (), ROW, rates=("tokens",)),
    StageEntry(TRAIN),
)

# Files and folders of the run directory; each stage has a folder of its name (see `receipt_path`).
PLAN = "plan.json"
CONFIG = "config.json"
LOCK = "run.lock"
ATTEMPTS = "attempts.json"  # units in flight, and attempts that never ended; gone after a good run
KILLERS = "killers.json"  # the records that were found to end their worker
SHARDS = "shards"
INDEX = f"{SHARDS}/index.json"
CARD = f"{SHARDS}/README.md"

# Units of interleave beside its shards: where each sample goes; the same by the units of the samples;
# and for each group of units the pieces of its samples (`exchange_unit`). Only the order stays.
ORDER_UNIT = "order"
PLACEMENTS_UNIT = "placements"
EXCHANGE = "exchange"


def exchange_unit(group: int) -> str:
    """Name the unit of interleave that holds the pieces of a group of units."""
    return f"{EXCHANGE}-{group:05d}"


def is_temporary(unit: str) -> bool:
    """Tell whether a unit of interleave is needed only until the shards are made."""
    return unit == PLACEMENTS_UNIT or unit.startswith(f"{EXCHANGE}-")


def is_shard(unit: str) -> bool:
    """Tell whether a unit of interleave is a shard."""
    return unit != ORDER_UNIT and not is_temporary(unit)


def stage_names() -> tuple[str, ...]:
    """List all stages in the order of the data."""
    return tuple(entry.name for entry in TABLE)


def stage_chain(modality: str) -> tuple[str, ...]:
    """List the stages that units of a modality pass through, in their order."""
    return tuple(entry.name for entry in TABLE if modality in entry.chains)


def output_schema(stage: str) -> pa.Schema:
    """Return the schema of the tables that a stage makes.

    Raises: ContractError for a stage that is not declared, or makes no tables.
    """
    schema = next((entry.output for entry in TABLE if entry.name == stage), None)
    if schema is None:
        raise ContractError(
            f"stage {stage} has no output schema",
            "koe/dataflow.py does not declare one",
            "Add the stage to its table.",
        )
    return schema


def rates_of(stage: str) -> tuple[str, ...]:
    """List the measures of a stage that are shown per second; none for a stage that is not declared."""
    return next((entry.rates for entry in TABLE if entry.name == stage), ())


def work_measure(stage: str) -> str:
    """Name the measure that the cost of a stage is proportional to; empty where there is none."""
    return next((entry.work for entry in TABLE if entry.name == stage), "")


def stage_making(column: str) -> str:
    """Name the first stage of a chain whose tables have this column.

    That stage fills the column. Only `codes` differs, which the score stage mostly leaves empty:
    the stage that makes codes is the one that makes `frames`.
    """
    return _with(column)[0]


def last_stage_with(column: str) -> str:
    """Name the last stage of a chain whose tables have this column."""
    return _with(column)[-1]


def _with(column: str) -> list[str]:
    return [
        entry.name
        for entry in TABLE
        if entry.chains and entry.output is not None and column in entry.output.names
    ]


def receipt_path(stage: str, unit: str) -> str:
    """Return where the receipt of a unit lies."""
    return f"{stage}/{unit}.json"


def output_path(stage: str, unit: str) -> str:
    """Return where the table of what a stage kept of a unit lies; shards have a folder of their own."""
    if stage == INTERLEAVE and is_temporary(unit):
        return f"{stage}/{unit}.segments"  # no Arrow file, but several streams
    if stage == INTERLEAVE and is_shard(unit):
        return f"{SHARDS}/{unit}.arrow"
    return f"{stage}/{unit}.arrow"


def excluded_path(stage: str, unit: str) -> str:
    """Return where the table of what a stage left out of a unit lies, with the reasons."""
    return f"{stage}/{unit}.excluded.arrow"


def stored_schema(path: str) -> pa.Schema | None:
    """Return the schema of the table at a path of the run directory; None where none is declared."""
    folder, _, name = path.rpartition("/")
    if name.endswith(".excluded.arrow"):
        return EXCLUDED
    if path == output_path(INTERLEAVE, ORDER_UNIT):
        return ORDER
    if folder == SHARDS:
        return ROW
    return next((entry.output for entry in TABLE if entry.name == folder and entry.chains), None)


SET_ASIDE = ".set-aside.json"  # how the names of these files end


def set_aside_path(stage: str, unit: str) -> str:
    """Return where it is written that a stage leaves a unit aside, and why."""
    return f"{stage}/{unit}{SET_ASIDE}"
