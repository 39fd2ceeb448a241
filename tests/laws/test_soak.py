"""A tiny form of the soak (`python -m tests.soak`): a few kills and faults, and what chooses them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.s3_server import s3_server
from tests.soak.__main__ import FEW_UNITS, Soak
from tests.soak.files import outputs
from tests.soak.kills import KINDS
from tests.soak.requests import choose, fault_each, kind_of
from tests.soak.runs import Case, Differs, Whole, files_of, require_same
from tests.soak.table import SAME, Report


@pytest.fixture
def report() -> Report:
    return Report(Console(file=io.StringIO()))


@pytest.mark.slow
@pytest.mark.law
def test_a_few_kills_and_faults(tmp_path, report):
    with s3_server() as server:
        soak = Soak(tmp_path, server, report, random.Random(0))
        case, whole = soak.quiet(FEW_UNITS)
        inline = [kind for kind in KINDS if not kind.options and not kind.on_s3]
        soak.kills(2, tuple(inline), FEW_UNITS, whole)
        one = lambda: soak.case(FEW_UNITS, on_s3=True)  # noqa: E731
        fault_each(report, server, one, whole, 1, soak.rng, only="PUT encode/*.json")
    table = {row.kind: row for row in report.rows.values()}
    assert table["the whole run, inline"].outcomes == {SAME: 1}
    assert not report.failed, [row.differences for row in report.rows.values()]
    shard = next(path for path in outputs(Path(case.run_dir)) if path.parent.name == "shards")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(Differs, match=f"other bytes than the undisturbed run's: .*{shard.name}"):
        require_same(case, whole, thorough=False)


def test_a_difference_fails_the_report(report, tmp_path):
    def differs() -> str:
        raise Differs("other bytes")

    assert report.failed  # nothing was tried
    report.run("kills", "one", lambda: SAME)
    assert not report.failed
    report.run("kills", "one", differs)
    assert report.failed
    assert report.rows["kills", "one"].outcomes == {SAME: 1, "DIFFERS": 1}
    report.write(tmp_path / "table.json", seed=3)
    written = json.loads((tmp_path / "table.json").read_text())
    assert (written["seed"], written["rows"][0]["outcomes"]) == (3, {SAME: 1, "DIFFERS": 1})


def test_requests_are_named_by_what_they_are_about():
    def kind(method: str, path: str, query: str = "") -> str:
        return kind_of((method, path, query), "s3://soak/run-1")

    assert kind("PUT", "/soak/run-1/plan.json") == "PUT plan.json"
    assert kind("GET", "/soak/run-1/score/a-00001.excluded.arrow") == "GET score/*.excluded.arrow"
    assert kind("PUT", "/soak/run-1/score/a.arrow", "partNumber=1&uploadId=x") == (
        "PUT (upload) score/*.arrow"
    )
    assert kind("GET", "/soak", "list-type=2&prefix=run-1%2Fscore%2F&delimiter=%2F") == "LIST score"


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.integers(0, 80))
def test_every_kind_of_request_is_chosen(kinds, most):
    chosen = choose(kinds, most, random.Random(0))
    assert {kinds[number - 1] for number in chosen} == set(kinds)
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) >= min(most, len(kinds))


def test_a_run_without_judged_files_is_not_the_same(tmp_path):
    (tmp_path / "run" / "score").mkdir(parents=True)
    (tmp_path / "run" / "score" / "a.arrow").write_bytes(b"rows")
    case = Case(tmp_path / "pipeline.yaml", str(tmp_path / "run"), tmp_path)
    whole = Whole(files_of(case.run_dir), {})
    assert list(whole.files) == ["score/a.arrow"]
    (tmp_path / "run" / "score" / "a.arrow").unlink()
    with pytest.raises(Differs, match="other bytes"):
        require_same(case, whole, thorough=False)
