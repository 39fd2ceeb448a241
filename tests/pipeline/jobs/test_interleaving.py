"""The stored order is the order that was planned, shard by shard, and nothing of it is lost."""

from dataclasses import replace

import pyarrow as pa
import pytest

from koe.schema import EXCLUDED, QUARANTINED, REJECTED
from koe.stage import Outcome
from pipeline.execution.runner import DONE, FAILED, SKIPPED, always
from pipeline.jobs.order import OrderWork, shard_names, shard_places
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from stages.interleave import OrderStage
from stages.packing.order import plan_order
from stages.settings import InterleaveSettings
from tests.pipeline.run_dir.test_ledger import Numbers
from tests.stages.samples import changed, corpus, described, excluded

SETTINGS = InterleaveSettings(seed=0, shard_megabytes=0.05, validation_share=0.05)


def tables():
    found = corpus(num_samples=200)
    names = list(found)
    found["again"] = pa.concat_tables([found[names[0]].slice(3, 4), found[names[-1]].slice(1, 1)])
    return found


@pytest.fixture
def run(tmp_path):
    """A run whose samples are stored: its tables, ledger and the work of ordering them."""
    found, ledger, none = tables(), Ledger(Storage(str(tmp_path))), EXCLUDED.empty_table()
    for name, table in found.items():
        stage = replace(Numbers(), name="tokenize")
        outcome = Outcome(table, none, none)
        ledger.commit(stage, name, "", outcome, records_in=table.num_rows, seconds=0)
    sources = tuple(table["source"][0].as_py() for table in found.values())
    return found, ledger, OrderWork(OrderStage(SETTINGS, {}), str(tmp_path), tuple(found), sources)


def test_what_is_stored_is_what_was_planned(run):
    found, ledger, work = run
    result = work.open()("order", always)
    planned = plan_order(described(found), SETTINGS)
    receipt = ledger.receipt("interleave", "order")
    assert ledger.read(receipt).equals(planned.table)
    left_out = [excluded(planned, outcome) for outcome in (REJECTED, QUARANTINED)]
    assert ledger.read_excluded(receipt).equals(pa.concat_tables(left_out))
    assert receipt.rejected == {"overlong": 3}
    assert receipt.quarantined == {"duplicate_id": 5}
    assert result.records_in == planned.num_samples == result.kept + 8
    placed = {key: value for key, value in receipt.measures.items() if key.startswith("placed.")}
    assert sum(placed.values()) == result.kept
    assert set(placed) == {"placed.jvs", "placed.dolly"}
    assert (result.status, work.open()("order", always).status) == (DONE, SKIPPED)


def test_the_shards_of_an_order_are_known(run):
    found, ledger, work = run
    assert work.open()("order", always).status == DONE
    receipt = ledger.receipt("interleave", "order")
    shards = plan_order(described(found), SETTINGS).shards()
    places = shard_places(ledger.storage, receipt)
    assert list(places) == list(shards)
    assert [stop - start for start, stop in places.values()] == [len(s) for s in shards.values()]
    assert shard_names(ledger, receipt) == list(shards)
    older = {k: v for k, v in receipt.measures.items() if not k.startswith("shards.")}
    assert shard_names(ledger, receipt.model_copy(update={"measures": older})) == list(shards)


def test_an_order_that_cannot_be_made_says_why(run):
    _, ledger, work = run
    missing = replace(work, units=(*work.units, "absent"))
    speech = tuple(unit for unit in work.units if unit.startswith("jvs"))
    ratio = [(0.0, {"text": 1, "speech": 0.001})]
    unfit = OrderWork(
        OrderStage(changed(SETTINGS, ratio=ratio), {}), work.root, speech, ("jvs",) * len(speech)
    )
    for broken, why in ((missing, "absent is not tokenized"), (unfit, "0 rows of text")):
        result = broken.open()("order", always)
        assert (result.stage, result.status) == ("order", FAILED)
        assert why in result.error
    assert ledger.receipt("interleave", "order") is None


def test_what_holds_all_samples_reserves_memory_for_them():
    stage = OrderStage(SETTINGS, {}, samples=24_000_000)
    base = SETTINGS.memory_gigabytes_per_worker * 1e9
    assert stage.resources.memory == base
    assert OrderWork(stage, "", (), ()).resources.memory == base + 24_000_000 * 40
    unreserved = SETTINGS.model_copy(update={"memory_gigabytes_per_worker": 0.0})
    assert OrderStage(unreserved, {}, samples=10).holding_all.memory == 0
    assert stage.content == OrderStage(SETTINGS, {}).content
