"""Receipts: a unit is done only while input, settings, version and output agree with them."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from koe.errors import BadRecord, ContractError, StageError
from koe.schema import SPEECH, Unit
from koe.stage import Exclusions, Resources, check_outcome
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE, FAILED, SKIPPED, STOPPED
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage

OUT = pa.schema([pa.field("id", pa.string()), pa.field("seconds", pa.float64())])
NAMES = ["u0", "u1", "u2"]


@dataclass(frozen=True)
class Numbers:
    """Makes a row a record; multiples of `reject_every` are rejected, gaps are quarantined."""

    reject_every: int = 3
    lose: bool = False
    name: str = "numbers"
    version: int = 1
    resources: Resources = field(default_factory=Resources)
    output_schema: ClassVar[pa.Schema] = OUT
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def content(self):
        return {"reject_every": self.reject_every, **self.extra}

    def open(self):
        return self._run

    def _run(self, units):
        unit = units.to_pylist()[0]
        exclusions, kept = Exclusions(self.name), []
        for number in range(unit["start"], unit["stop"] - self.lose):
            if number % self.reject_every == 0:
                exclusions.reject(str(number), unit["source"], "multiple", "of it")
            else:
                kept.append({"id": str(number), "seconds": 0.5})
        for number in range(unit["gaps"]):
            exclusions.quarantine(
                f"@{number}", unit["source"], BadRecord("unreadable_bytes", "cut")
            )
        return exclusions.outcome(pa.Table.from_pylist(kept, schema=OUT))


@dataclass(frozen=True)
class Doubled(Numbers):
    name: str = "doubled"
    boom: str = ""

    def _run(self, table):
        if self.boom == "stage" and table["id"][0].as_py() == "11":
            raise StageError("the model returned NaN", remedy="Check the model.", clip_id="11")
        if self.boom == "any" and table["id"][0].as_py() == "11":
            raise ZeroDivisionError("division by zero")
        return Exclusions(self.name).outcome(table)


def planned_units() -> dict[str, Unit]:
    return {
        name: Unit(
            name, "s", SPEECH, "p", "1:1", 10 * number + 1, 10 * number + 11,
            records=10 + (number == 2), gaps=int(number == 2),
        )
        for number, name in enumerate(NAMES)
    }  # fmt: skip


def run(root, first=Numbers(), second=Doubled(), units=None, force=False):
    units = units or planned_units()
    chain = [
        StageWork(first, None, str(root), units, force=force),
        StageWork(second, first.name, str(root), units),
    ]
    results: list = []
    assert run_plain(chain, NAMES, results.append) is not None
    return results


def statuses(results) -> list[str]:
    return [result.status for result in results]


def test_books_close_and_a_second_run_does_nothing(tmp_path):
    results = run(tmp_path)
    assert statuses(results) == [DONE] * 6
    ledger = Ledger(Storage(str(tmp_path)))
    receipt = ledger.receipt("numbers", "u2")
    assert receipt is not None
    assert (receipt.records_in, receipt.kept) == (11, 6)
    assert receipt.rejected == {"multiple": 4}
    assert receipt.quarantined == {"unreadable_bytes": 1}
    assert receipt.measures == {"seconds": 3.0}
    excluded = ledger.read_excluded(receipt)
    assert excluded is not None
    assert excluded.num_rows == 5
    assert statuses(run(tmp_path)) == [SKIPPED] * 6


def test_changed_settings_redo_the_stage_and_say_so(tmp_path):
    run(tmp_path)
    results = run(tmp_path, Numbers(reject_every=4))
    assert statuses(results) == [DONE] * 6
    assert results[0].why == "settings changed: reject_every"
    assert results[1].why == "its input changed"


def test_a_stage_whose_output_stays_equal_does_not_redo_the_next(tmp_path):
    run(tmp_path)
    results = run(tmp_path, Numbers(extra={"label": "new"}))
    assert statuses(results) == [DONE, SKIPPED] * 3
    results = run(tmp_path, Numbers(version=2))
    assert results[0].why == "the stage's version rose to 2"


def test_a_changed_source_file_redoes_its_units_alone(tmp_path):
    run(tmp_path)
    units = planned_units()
    units["u1"] = replace(units["u1"], stamp="1:2")
    assert statuses(run(tmp_path, units=units)) == [
        SKIPPED,
        SKIPPED,
        DONE,
        SKIPPED,
        SKIPPED,
        SKIPPED,
    ]


def test_force_redoes_and_equal_bytes_stop_there(tmp_path):
    run(tmp_path)
    results = run(tmp_path, force=True)
    assert statuses(results) == [DONE, SKIPPED] * 3
    assert results[0].why == "forced"


@pytest.mark.parametrize("name", ["u0.arrow", "u0.excluded.arrow"])
def test_a_torn_or_missing_output_is_redone(tmp_path, name):
    run(tmp_path)
    path = tmp_path / "numbers" / name
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    results = run(tmp_path)
    assert results[0].status == DONE
    assert "is incomplete or missing" in results[0].why
    assert path.read_bytes() == before
    path.unlink()
    assert run(tmp_path)[0].status == DONE


def test_a_torn_receipt_is_no_receipt(tmp_path):
    run(tmp_path)
    path = tmp_path / "numbers" / "u1.json"
    path.write_bytes(path.read_bytes()[:30])
    assert statuses(run(tmp_path)) == [SKIPPED, SKIPPED, DONE, SKIPPED, SKIPPED, SKIPPED]


def test_a_stage_that_loses_records_is_caught(tmp_path):
    results = run(tmp_path, Numbers(lose=True))
    assert statuses(results) == [FAILED] * 3
    assert "lost or invented records" in results[0].error
    assert Ledger(Storage(str(tmp_path))).receipt("numbers", "u0") is None


@pytest.mark.parametrize(("boom", "words"), [("stage", "clip 11"), ("any", "ZeroDivisionError")])
def test_a_failing_unit_is_named_and_resumable_while_the_others_go_on(tmp_path, boom, words):
    results = run(tmp_path, second=Doubled(boom=boom))
    assert statuses(results) == [DONE, DONE, DONE, FAILED, DONE, DONE]
    assert words in results[3].error
    results = run(tmp_path)
    assert statuses(results) == [SKIPPED, SKIPPED, SKIPPED, DONE, SKIPPED, SKIPPED]


def test_failing_storage_stops_the_run(tmp_path):
    (tmp_path / "numbers").write_bytes(b"a file where the folder should be")
    results: list = []
    work = StageWork(Numbers(), None, str(tmp_path), planned_units())
    assert run_plain([work], NAMES, results.append) is False
    assert statuses(results) == [STOPPED]
    assert "run the same command again" in results[0].error


def test_a_stage_without_its_input_names_the_stage_before(tmp_path):
    results: list = []
    run_plain(
        [StageWork(Doubled(), "numbers", str(tmp_path), planned_units())], NAMES, results.append
    )
    assert statuses(results) == [FAILED] * 3
    assert "has no output of stage numbers" in results[0].error


def test_a_wrong_output_schema_shows_both_sides(tmp_path):
    @dataclass(frozen=True)
    class Wrong(Numbers):
        def _run(self, units):
            return Exclusions("x").outcome(pa.table({"id": ["a"], "seconds": [1]}))

    wrong = Wrong()._run(None)
    with pytest.raises(ContractError, match=r"(?s)seconds: expected .*double.* found .*int64"):
        check_outcome(Wrong(), 1, wrong)


def test_what_a_worker_warns_of_is_part_of_the_result(tmp_path):
    @dataclass(frozen=True)
    class Warns(Numbers):
        def _run(self, table):
            logging.getLogger("stages.made_up").warning("no %s here", "compiler")
            return super()._run(table)

    results = run(tmp_path, Warns())
    assert [result.notes for result in results] == [("no compiler here",), ()] * 3
    assert not logging.getLogger("stages").handlers
