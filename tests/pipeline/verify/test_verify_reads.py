"""`koe verify` reads every file once, however many shards there are, and copes with a run on its way."""

import shutil
from collections import Counter

import pytest

from pipeline.jobs.interleave import Shards
from pipeline.run_dir.storage.local import LocalFiles
from stages.interleave import OrderStage
from stages.settings import InterleaveSettings
from tests.forging import Forged, made_here, sound_run

pytestmark = pytest.mark.slow


@pytest.fixture
def forged(tmp_path_factory, tmp_path):
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    return Forged(tmp_path / "run")


def test_every_file_is_read_once(forged, monkeypatch):
    reads: Counter[str] = Counter()

    def counted(read):
        def count(self, path, *more, **options):
            reads[path] += 1
            return read(self, path, *more, **options)

        return count

    for name in ("read", "source", "read_range"):
        monkeypatch.setattr(LocalFiles, name, counted(getattr(LocalFiles, name)))
    order = forged.storage.read_table("interleave/order.arrow").to_pylist()
    units = [unit.unit for unit in forged.plan.units]
    cut = {f"tokenize/{units[piece['unit']]}.arrow" for piece in order if piece["part"]}
    reads.clear()
    forged.verify()
    assert len(forged.shards()) > 3
    of_shards = {
        path: n for path, n in reads.items() if path.endswith(".arrow") and "shards/" in path
    }
    assert of_shards == {f"shards/{name}.arrow": 1 for name in forged.shards()}
    assert cut
    for unit in units:
        path = f"tokenize/{unit}.arrow"
        # samples of one id are compared once more; so are the pieces of those that were cut
        assert reads[path] <= 1 + (path in cut) + 1
    uncut = [unit for unit in units if f"tokenize/{unit}.arrow" not in cut]
    assert uncut
    assert min(reads[f"tokenize/{unit}.arrow"] for unit in uncut) == 1


def test_a_run_between_the_passes_is_proved_as_far_as_it_goes(forged):
    names = {"codec", "tokenizer"}
    content = forged.order().content
    stage = OrderStage(
        InterleaveSettings(**{k: v for k, v in content.items() if k not in names}),
        {k: v for k, v in content.items() if k in names},
    )
    forged.storage.remove("shards/index.json")
    lost = forged.shards()[1:]
    for name in lost:
        forged.storage.remove(f"interleave/{name}.json")
        forged.storage.remove(f"shards/{name}.arrow")
    units = tuple(unit.unit for unit in forged.plan.units)

    def first_pass(work, names, done):
        return work.name != stage.name and made_here(work, names, done)

    shards = Shards(stage, forged.ledger, units, first_pass)
    assert shards.make() is None
    assert [name for name in forged.storage.names("interleave") if name.endswith(".segments")]
    proofs = {proof.what: proof.count for proof in forged.verify()}
    assert proofs["shards agree with their receipts in hash, rows and tokens"] == 1
