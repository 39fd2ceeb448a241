"""Decides before any worker starts which units are done: in bulk, where each worker would ask for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from koe.dataflow import excluded_path, receipt_path
from pipeline.execution.runner import SKIPPED, UnitResult, result_of
from pipeline.execution.stage_work import StageWork, planned_sha256
from pipeline.run_dir.ledger import Ledger, Receipt

Chain = tuple[Sequence[StageWork], Sequence[str]]  # stages, and the units that pass through them
_Sizes = Mapping[str, int]  # of the files of stage folders, by path


def leave_done(
    chains: Sequence[Chain], ledger: Ledger, on_result: Callable[[UnitResult], None]
) -> Iterator[Chain]:
    """Yield each chain with the units that a stage of it has to do; the results of the others are reported.

    The stages are then those of the run that holds the lock of the storage.

    One listing per stage and many receipts at a time tell it. Tables of what was left out that no
    receipt vouches for are removed, so that a worker that finds no receipt has nothing to remove.
    """
    stages = {work.stage.name for works, _ in chains for work in works}
    sizes = {
        f"{stage}/{name}": size
        for stage in stages
        for name, (size, _) in ledger.storage.stamps(stage).items()
    }
    for works, units in chains:
        _remove_strays(works, units, ledger, sizes)
        done: set[str] = set()
        for unit, results in _done(works, units, ledger, sizes):
            done.add(unit)
            for result in results:
                on_result(result)
        token = ledger.storage.token
        yield [work.under(token) for work in works], [unit for unit in units if unit not in done]


def _remove_strays(
    works: Sequence[StageWork], units: Sequence[str], ledger: Ledger, sizes: _Sizes
) -> None:
    for stage in (work.stage.name for work in works):
        for unit in units:
            path = excluded_path(stage, unit)
            if path in sizes and receipt_path(stage, unit) not in sizes:
                ledger.storage.remove(path)


def _done(
    works: Sequence[StageWork], units: Sequence[str], ledger: Ledger, sizes: _Sizes
) -> Iterator[tuple[str, list[UnitResult]]]:
    """Yield the units that need no work, with what is reported of each stage."""
    if any(work.force for work in works):
        return
    stages = [work.stage.name for work in works]
    before = works[0].upstream
    read = [*([before] if before else []), *stages]
    likely = [u for u in units if all(receipt_path(stage, u) in sizes for stage in stages)]
    receipts = ledger.receipts((stage, unit) for unit in likely for stage in read)
    for unit in likely:
        found = {stage: next(receipts) for stage in read}
        if results := _results(works, unit, ledger, found, sizes):
            yield unit, results


def _results(
    works: Sequence[StageWork],
    unit: str,
    ledger: Ledger,
    found: Mapping[str, Receipt | None],
    sizes: _Sizes,
) -> list[UnitResult]:
    """Return a result of each stage, none where one of them has to do the unit."""
    results = []
    for work in works:
        upstream = found[work.upstream] if work.upstream else None
        if work.upstream and upstream is None:
            return []
        input_sha256 = upstream.output.sha256 if upstream else planned_sha256(work, unit)
        check = ledger.judge(
            work.recorded(unit, input_sha256), found[work.stage.name], input_sha256, sizes.get
        )
        if check.receipt is None:
            return []
        results.append(result_of(check.receipt, SKIPPED))
    return results
