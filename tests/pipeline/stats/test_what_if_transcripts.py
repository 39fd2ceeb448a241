"""What `koe stats --what-if` says of checks is what a run then does, which scores and encodes nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from koe.schema import REJECTED
from pipeline.config.load import load_config
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import full_stats
from pipeline.verify import verify_run
from stages.text.transcripts import LONG_FOR_SOURCE, REASONS, SHORT_FOR_SOURCE
from tests.calling import koe
from tests.texts_run import EVERY, copied_run, in_section, run

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    "off": {},
    "every check": EVERY,
    "stripped": {"invisible_characters": "strip", "normalize": "nfc"},
    "by source": {"max_rate_deviations": 2.0},
    "all together": EVERY | {"max_rate_deviations": 1.5},
}


@pytest.fixture
def copied(tmp_path_factory, tmp_path) -> Path:
    return copied_run(tmp_path_factory.getbasetemp(), tmp_path)


def made(run_dir: Path, stage: str) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (run_dir / stage).glob("*.json")}


@pytest.mark.law
@pytest.mark.parametrize("name", CASES)
def test_the_forecast_of_checks_is_what_a_run_rejects(copied, name):
    checks = in_section("transcripts", CASES[name])
    config = load_config(copied, checks)
    run_dir = Path(config.run_dir)
    ledger, plan = Ledger(Storage(config.run_dir)), load_plan(Storage(config.run_dir))
    forecast = full_stats(plan, ledger, transcripts=config.transcripts).transcripts
    earlier = {stage: made(run_dir, stage) for stage in ("ingest", "score", "encode")}
    shards = (run_dir / "shards/index.json").read_bytes()

    report = run(copied, checks)
    assert report.stats is not None
    assert {stage: made(run_dir, stage) for stage in earlier} == earlier
    assert (shards == (run_dir / "shards/index.json").read_bytes()) == (name == "off")
    known = {*REASONS, LONG_FOR_SOURCE, SHORT_FOR_SOURCE}
    rejected = {
        source: {reason: n for reason, n in account.reasons(REJECTED).items() if reason in known}
        for source, account in report.stats.sources.items()
        if account.modality == "speech"
    }
    assert rejected == {name: found.rejected for name, found in forecast.sources.items()}
    assert any(rejected.values()) == (name not in ("off",)) or name == "stripped"
    assert all(account.adds_up for account in report.stats.sources.values())
    assert any("left out have a reason" in proof.what for proof in verify_run(plan, ledger))
    after = full_stats(plan, ledger, transcripts=config.transcripts)
    assert after.transcripts == forecast  # what it is made of is not touched
    examples = Counter(row.reason for row in after.quarantine_examples if row.reason in known)
    assert set(examples) == {reason for found in rejected.values() for reason in found}


def test_checks_tell_what_they_would_reject_before_anything_is_scored(copied):
    checks = in_section("transcripts", EVERY)
    config = load_config(copied, checks)
    shutil.rmtree(config.run_dir)
    run(copied, checks, last="ingest")
    ledger, plan = Ledger(Storage(config.run_dir)), load_plan(Storage(config.run_dir))
    found = full_stats(plan, ledger, transcripts=config.transcripts).transcripts
    assert found is not None
    assert found.sources["said"].clips == 42
    assert found.sources["said"].rejected["repeated_text"] == 1


def test_the_command_shows_and_prints_it(copied):
    options = (
        "--what-if",
        "max_repeats=8",
        "--what-if",
        "0.9,1.1",
        "--what-if",
        "invented_phrases=[default]",
    )
    code, out, _ = koe("stats", "-c", str(copied), *options)
    assert code == 0
    assert "What these checks of transcripts reject: max_repeats 8, invented_phrases default" in out
    assert "repeated_text" in out
    assert "ovrl above" in out
    code, out, _ = koe("stats", "-c", str(copied), "--source", "said", *options)
    assert code == 0
    assert "said    repeated_text" in out
    assert "other   repeated_text" not in out
    code, out, _ = koe("stats", "-c", str(copied), "--json", *options)
    found = json.loads(out)
    assert [row["threshold"] for row in found["thresholds"]["what_if"]] == [0.9, 1.1]
    transcripts = found["transcripts"]
    assert transcripts["settings"]["max_repeats"] == 8
    assert transcripts["sources"]["said"]["rejected"] == {"invented_phrase": 1, "repeated_text": 1}
    assert transcripts["examples"][0]["stage"] == "what-if"


@pytest.mark.parametrize(
    "value", ["max_repeat=8", "max_repeats=none", "max_repeats=0", "2.0,x", "x=1"]
)
def test_a_check_that_is_not_known_is_refused(copied, value):
    code, out, err = koe("stats", "-c", str(copied), "--what-if", value)
    assert (code, out) == (2, "")
    assert err.startswith("koe: ")


def test_a_rejected_clip_is_shown_by_inspect_and_on_the_page(copied, tmp_path):
    run(copied, in_section("transcripts", EVERY))
    code, out, _ = koe("inspect", "said/latin", "-c", str(copied))
    assert code == 0
    assert "other_script" in out
    assert "0% of the letters of 'hello world'" in out
    page = tmp_path / "page"
    assert koe("stats", "-c", str(copied), "--html", str(page), "--html-clips", "0")[0] == 0
    text = (page / "index.html").read_text()
    assert "other_script" in text
    assert "other script \\u00b7 tokenize" in text or "other script · tokenize" in text
