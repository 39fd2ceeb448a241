"""The two passes read what they must, keep what is done, and leave nothing behind."""

import pyarrow as pa
import pytest

from koe.errors import ContractError
from koe.schema import PIECE, SAMPLE
from pipeline.run_dir.storage import Storage
from stages.settings import InterleaveSettings
from tests.pipeline.jobs.shards_run import Killed, ShardsRun
from tests.stages.samples import corpus

SETTINGS = InterleaveSettings(seed=0, shard_megabytes=0.05, validation_share=0.05)
GROUP_TOKENS = 30_000


@pytest.fixture
def run(tmp_path):
    found = ShardsRun(str(tmp_path), corpus(num_samples=80), SETTINGS, GROUP_TOKENS)
    found.store_samples()
    return found


@pytest.fixture
def reads(monkeypatch):
    """The tables that are read, each as often as it is."""
    found = []
    read = Storage.read_table
    monkeypatch.setattr(
        Storage, "read_table", lambda self, path: found.append(path) or read(self, path)
    )
    return found


def shards(units):
    return [name for name in units if name.startswith(("train", "validation"))]


def groups(units):
    return [name for name in units if name.startswith("exchange")]


def tokens_read(reads):
    return [path for path in reads if path.startswith("tokenize/")]


def kill_between(run, left):
    """End a run when `left` shards are not made yet; return the units it did, and its files to be."""
    names = shards(run.make())
    whole = run.files()
    for name in names:
        run.storage.remove(f"interleave/{name}.json")
    run.kill_at = len(groups(run.done)) + 1 + len(names) - left
    with pytest.raises(Killed):
        run.make()
    run.kill_at = None
    return run.done, whole


def test_every_sample_is_read_once_for_all_shards(run, reads):
    run.make()
    assert len(shards(run.done)) > 3
    assert len(groups(run.done)) > 2
    with_left_out = 3  # each unit of speech has one sample that is too long
    assert len(tokens_read(reads)) == 2 * len(run.tables) + with_left_out


def test_one_lost_shard_costs_one_reading_and_leaves_the_others(run, reads):
    run.make()
    before = run.files()
    run.storage.remove("shards/train-00001.arrow")
    reads.clear()
    run.make()
    assert shards(run.done) == ["train-00001"]
    assert sorted(tokens_read(reads)) == sorted(f"tokenize/{name}.arrow" for name in run.tables)
    assert run.files() == before


def test_a_run_killed_in_the_second_pass_does_not_repeat_the_first(run):
    done, whole = kill_between(run, left=2)
    assert groups(done)
    assert run.storage.names("interleave")
    rest = run.make()
    assert len(rest) == 2 == len(shards(rest))
    assert run.files() == whole


def test_a_run_killed_before_it_tidied_up_is_tidied_by_the_next(run, monkeypatch):
    run.make()
    whole = run.storage.names("interleave"), run.files()
    monkeypatch.setattr(Storage, "remove", _no_exchange_removed)
    with pytest.raises(Killed):
        run.make(force=True)
    assert groups(run.storage.names("interleave"))
    monkeypatch.undo()
    assert run.make() == []
    assert (run.storage.names("interleave"), run.files()) == whole


def _no_exchange_removed(self, path, remove=Storage.remove):
    if "exchange" in path and path.endswith(".json") and self.size("shards/index.json"):
        raise Killed
    remove(self, path)


def test_other_tokens_of_the_same_lengths_make_the_shards_anew(run):
    run.make()
    before = run.files()
    (name, table), *_ = run.tables.items()
    tokens = table["input_ids"].combine_chunks()
    values = tokens.values.to_numpy().copy()
    values[tokens.offsets[3].as_py() + 5] += 1
    changed = pa.ListArray.from_arrays(tokens.offsets, pa.array(values))
    run.tables[name] = table.set_column(4, SAMPLE.field("input_ids"), changed)
    run.store_samples()
    assert shards(run.make())
    assert run.files() != before
    assert sum(run.files()[file] != before[file] for file in before if "index" not in file) == 1


def test_leftovers_of_an_earlier_order_go(run):
    done, _ = kill_between(run, left=1)
    assert len(groups(done)) > 2
    run.group_tokens = 1 << 26
    run.settings = SETTINGS.model_copy(update={"seed": 1})
    done = run.make()
    assert groups(done) == ["exchange-00000"]
    files = run.storage.names("interleave")
    named = {f"{name}.json" for name in (*shards(done), "order")}
    assert set(files) == named | {"order.arrow", "order.excluded.arrow"}


def test_pieces_that_are_torn_are_told(run):
    kill_between(run, left=2)
    receipt = run.ledger.receipt("interleave", "exchange-00001")
    begin, end = receipt.segments[-2:]
    data = run.storage.read_bytes(receipt.output.path)
    for torn, words in (
        (data[: end - 1], "ends before its byte"),
        (bytes(len(data)), "not a complete Arrow"),
    ):
        run.storage.write_bytes(receipt.output.path, torn)
        with pytest.raises(ContractError, match=words):
            run.storage.read_segment(receipt.output.path, begin, end, PIECE)


@pytest.mark.slow
def test_requests_on_s3_grow_with_groups_times_shards_and_units(s3):
    run = ShardsRun(
        f"{s3.make_bucket('exchange')}/run", corpus(num_samples=30), SETTINGS, GROUP_TOKENS
    )
    run.store_samples()
    run.make()
    names = shards(run.done)
    for name in names:
        run.storage.remove(f"shards/{name}.arrow")
    s3.clear()
    run.make()
    number = len(groups(run.done))
    assert number > 1
    assert shards(run.done) == names
    gets = [path for method, path, _ in s3.log() if method == "GET"]
    pieces = [path for path in gets if "exchange-" in path and path.endswith(".segments")]
    assert len(pieces) <= number * len(names)
    of_samples = [path for path in gets if "/tokenize/" in path and path.endswith(".arrow")]
    assert len(of_samples) == len(run.tables)
    turned = [path for path in gets if path.endswith("placements.segments")]
    assert len(turned) == number + len(names)
    puts = [path for method, path, _ in s3.log() if method == "PUT"]
    assert len(puts) == 2 * (1 + number + len(names)) + 1  # outputs, receipts and the index
