"""The made-up run of the benchmarks is one that `koe verify` proves, and laws are fitted as they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.made_up_run import made_up_stages, write_corpus
from benchmarks.scale_page import Prices, request_cost, total
from benchmarks.scale_run import folders_of, law
from tests.calling import koe
from tests.shared import one_tokenizer

__all__ = ["one_tokenizer"]

CLIPS = [30_000, 100_000, 300_000, 1_000_000]


@pytest.mark.slow
def test_a_made_up_run_is_finished_and_proved(tmp_path):
    config = write_corpus(tmp_path, 1000, str(tmp_path / "run"))
    with made_up_stages():
        code, _, errors = koe("run", "--to", "tokenize", "-c", str(config))
    assert code == 0, errors
    code, _, errors = koe("run", "--to", "interleave", "-c", str(config))
    assert code == 0, errors
    before = "tokenize   2/2 units  kept 1,393  rejected 0  quarantined 0  2 units were done before"
    assert before in errors  # the real stages take what was made up for their own
    code, output, errors = koe("verify", "-c", str(config))
    assert code == 0, errors
    assert "speech follows the 7-slot layout and holds the codes that encode stored" in output
    code, output, _ = koe("stats", "--json", "-c", str(config))
    assert code == 0
    assert '"clips_in": 1000' in output
    found = folders_of(str(tmp_path / "run"))
    assert found["score json"]["files"] == found["tokenize json"]["files"] - 1 == 1


@given(st.floats(0, 100), st.floats(1e-4, 1), st.sampled_from([1, 2]))
def test_a_law_tells_a_line_from_a_square(fixed, slope, exponent):
    values = [fixed + slope * (clips / 1000) ** exponent for clips in CLIPS]
    found = law(CLIPS, values)
    if exponent == 1:
        assert found["exponent"] == pytest.approx(1, abs=0.01)
        assert found["at_15_million"] == pytest.approx(fixed + slope * 15_000, rel=0.01)
        assert found["off_at_most"] <= 0.001
    else:
        assert 1.85 < found["exponent"] < 2.1
        assert found["off_at_most"] > 0.1 or fixed > 10 * slope


def test_a_law_of_what_does_not_grow_has_no_exponent():
    assert law(CLIPS, [3.0, 3.0, 3.0, 3.0])["exponent"] is None
    assert law([1000], [3.0]) == {"values": [3.0]}


def test_requests_have_their_prices():
    def run(clips: int) -> dict:
        requests = {"PUT": clips // 10, "LIST": clips // 10, "GET": clips, "DELETE": clips}
        return {
            "clips": clips,
            "commands": {"status": {"requests_of": requests}},
            "folders": {"score json": {"files": clips // 1000, "bytes": clips}},
        }

    runs = [run(clips) for clips in CLIPS]
    number, price = request_cost(runs, "status", Prices())
    assert number == pytest.approx(1.2 * 15e6, rel=1e-3)  # what is removed costs nothing
    assert price == pytest.approx(0.2 * 15e3 * 0.005 + 15e3 * 0.0004, rel=1e-3)
    assert total(runs, "files") == pytest.approx(15_000, rel=1e-3)
