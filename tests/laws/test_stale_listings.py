"""What a run decides rests on what is there, not on a listing: each case of a resume, beside a local disk."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import StageError
from pipeline.config.load import load_config
from pipeline.execution.done_before import leave_done
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import UnitResult
from pipeline.execution.selection import select_stages
from pipeline.execution.stage_work import StageWork
from pipeline.execution.status import StatusReader
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from stages.sources.files.listing import expand
from stages.sources.files.opening import stamp
from tests.corpus import write_corpus
from tests.laws.test_pipeline import QUIET
from tests.pipeline.run_dir.test_ledger import NAMES, Doubled, Numbers, planned_units
from tests.stale_files import register_stale_files

pytestmark = pytest.mark.law
STALE = register_stale_files()

# What happens between two runs: a file is lost or cut short, a stage's settings change, another
# process does the work of some units meanwhile, or the folders are listed (and remembered).
FILES = [
    f"{stage}/{unit}.{kind}"
    for stage in ("numbers", "doubled")
    for unit in NAMES
    for kind in ("json", "arrow", "excluded.arrow")
]
EVENTS = st.one_of(
    st.tuples(st.just("lost"), st.sampled_from(FILES)),
    st.tuples(st.just("cut"), st.sampled_from(FILES)),
    st.tuples(st.just("settings"), st.integers(2, 4)),
    st.tuples(st.just("others"), st.sampled_from(NAMES)),
    st.tuples(st.just("listed"), st.sampled_from(["numbers", "doubled"])),
    st.tuples(st.just("run"), st.none()),
)


class Life:
    """One run directory through a series of events; `raw` changes its files behind everybody's back."""

    def __init__(self, root: str, raw: Callable[[str], str]) -> None:
        self.storage, self.raw, self.first = Storage(root), raw, Numbers()

    def chain(self) -> list[StageWork]:
        units, root = planned_units(), self.storage.root
        second = Doubled()
        return [
            StageWork(self.first, None, root, units),
            StageWork(second, self.first.name, root, units),
        ]

    def happens(self, what: str, detail) -> None:
        if what == "settings":
            self.first = Numbers(reject_every=detail)
        elif what == "others":
            another = Life(self.storage.root, self.raw)
            another.first = self.first
            run_plain(another.chain(), [detail], lambda result: None)
        elif what == "listed":
            self.storage.names(detail)
            self.storage.size(f"{detail}/u0.json")
        elif what == "run":
            self.run()
        else:
            self.disturb(what, detail)

    def disturb(self, what: str, path: str) -> None:
        system, place = fsspec.core.url_to_fs(self.raw(path), use_listings_cache=False)
        if not system.exists(place):
            return
        data = system.cat_file(place)
        system.rm_file(place)
        if what == "cut":
            system.pipe_file(place, data[: len(data) // 2])

    def run(self) -> list[tuple[str, str, str, str, int]]:
        results: list[UnitResult] = []
        ledger = Ledger(self.storage)
        for works, units in leave_done([(self.chain(), NAMES)], ledger, results.append):
            assert run_plain(works, units, results.append)
        return sorted((r.stage, r.unit, r.status, r.why, r.kept) for r in results)

    def tables(self) -> dict[str, bytes]:
        return {
            f"{stage}/{name}": self.storage.read_bytes(f"{stage}/{name}")
            for stage in ("numbers", "doubled")
            for name in self.storage.names(stage)
            if name.endswith(".arrow")
        }


@pytest.mark.slow
@given(events=st.lists(EVENTS, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_resuming_over_stale_listings_does_what_a_local_disk_does(events) -> None:
    with TemporaryDirectory() as folder:
        root = f"stale://{uuid.uuid4().hex}/run"
        lives = [Life(folder, lambda path: f"{folder}/{path}"), Life(root, lambda p: f"{root}/{p}")]
        for life in lives:
            life.run()
            for what, detail in events:
                life.happens(what, detail)
        ours, theirs = (life.run() for life in lives)
        assert ours == theirs
        assert lives[0].tables() == lives[1].tables()
    assert not STALE.answered


def test_the_stale_file_system_would_be_caught() -> None:
    """Its listings are old indeed where nobody asks it to forget them."""
    system = STALE(skip_instance_cache=True)
    system.pipe_file("/caught/a", b"1")
    assert system.ls("/caught", detail=False) == ["/caught/a"]
    system.pipe_file("/caught/b", b"1")
    system.pipe_file("/caught/a", b"22")
    assert not system.exists("/caught/b")
    assert system.size("/caught/a") == 1
    STALE.answered.clear()


def test_a_source_is_planned_anew_in_a_process_that_listed_it_before() -> None:
    root = f"stale://{uuid.uuid4().hex}"
    raw = STALE(skip_instance_cache=True, use_listings_cache=False)
    raw.pipe_file(f"{root}/a.jsonl", b"{}")
    before = expand("s", [f"{root}/*.jsonl"])
    marks = [stamp(file.path) for file in before]
    raw.pipe_file(f"{root}/b.jsonl", b"{}")
    raw.pipe_file(f"{root}/a.jsonl", b"{}\n")
    after = expand("s", [f"{root}/*.jsonl"])
    assert [file.relative for file in after] == ["a.jsonl", "b.jsonl"]
    assert stamp(after[0].path) != marks[0]
    STALE.answered.clear()


@pytest.mark.slow
def test_receipts_deleted_behind_the_driver_are_counted_again(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    root = f"stale://{uuid.uuid4().hex}/run"
    stages = select_stages(None, "interleave", None, ())

    def run(*overrides: str):
        return run_job(load_config(config, [f"run_dir={root}", *overrides]), stages, QUIET)

    assert not run().failed
    raw = STALE(skip_instance_cache=True, use_listings_cache=False)
    for name in Storage(root).names("ingest"):
        if name.endswith(".json"):
            raw.rm_file(f"{root}/ingest/{name}")
    with pytest.raises(StageError, match=r"4 of 12 speech records are quarantined, more than"):
        run("max_quarantine_share=0.2")
    assert all(row.done for row in StatusReader(Ledger(Storage(root))).read() if row.records)
    assert not STALE.answered
