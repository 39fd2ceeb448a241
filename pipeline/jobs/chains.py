"""The chains of stages that a configuration describes, with the units that pass through each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from koe.dataflow import stage_chain
from koe.fingerprint import sha256_json
from koe.schema import SPEECH, TEXT
from koe.stage import Resources, Stage
from pipeline.execution.selection import Selection
from pipeline.execution.stage_work import StageWork
from pipeline.jobs.assembly import Assembly
from pipeline.run_dir.killers import UnitKillers, read_killers
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from stages.interleave import OrderStage


@dataclass(frozen=True)
class Chain:
    """Stages that units of a modality pass through one after the other.

    There is one chain for all speech, and one for each source of text (`source`).
    """

    modality: str
    stages: list[Stage]
    source: str | None = None


def build_chains(assembly: Assembly, selection: Selection) -> list[Chain]:
    sources = assembly.config.sources
    speech, text = (
        [name for name in stage_chain(modality) if name in selection.stages]
        for modality in (SPEECH, TEXT)
    )
    chains = [
        Chain(TEXT, [assembly.text_stage(name, item.name) for name in text], item.name)
        for item in sources.text
    ]
    if sources.speech:
        chains.append(Chain(SPEECH, [assembly.speech_stage(name) for name in speech]))
    return [chain for chain in chains if chain.stages]


def chains_of_work(
    built: Sequence[Chain], plan: Plan, assembly: Assembly, selection: Selection, ledger: Ledger
) -> list[tuple[list[StageWork], list[str]]]:
    """Return the work of each chain with its units, without the records that end their worker."""
    killers = read_killers(ledger.storage).found
    return [_plan_work(chain, plan, assembly, selection, killers) for chain in built]


def _plan_work(
    chain: Chain,
    plan: Plan,
    assembly: Assembly,
    selection: Selection,
    killers: Mapping[str, Mapping[str, UnitKillers]],
) -> tuple[list[StageWork], list[str]]:
    """Return the work of each stage of a chain, and the names of the units that it is done on."""
    units = {unit.unit: unit for unit in plan.units_of(chain.modality, chain.source)}
    reading = {
        name: sha256_json(
            plan.moves[name].settings_as_planned(value) if name in plan.moves else value
        )
        for name, value in assembly.reading.items()
    }
    names = stage_chain(chain.modality)
    upstream = dict(zip(names[1:], names, strict=False))
    works = [
        StageWork(
            stage=stage,
            upstream=upstream.get(stage.name),
            root=assembly.config.run_dir,
            units=units,
            reading=reading,
            force=stage.name in selection.force,
            killers={
                name: found for name, found in killers.get(stage.name, {}).items() if name in units
            },
            moves=plan.moves,
        )
        for stage in chain.stages
    ]
    return works, list(units)


def room_needed(
    built: Sequence[Sequence[StageWork]], order: OrderStage | None
) -> list[dict[str, Resources]]:
    """Return what one worker of each stage needs, of the stages that work at the same time."""
    chains = [{work.name: work.resources for work in works} for works in built]
    return chains if order is None else [*chains, {order.name: order.holding_all}]
