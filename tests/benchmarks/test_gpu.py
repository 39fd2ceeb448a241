"""The script that measures on a GPU runs on a CPU too, and keeps what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_paper import table
from benchmarks.gpu_pipeline import UnitDone, in_full_swing
from benchmarks.results import said

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def gpu_sh(
    out: Path, *words: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(out), "PYTHON": python, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_page_shows_the_machine_on_paper_as_it_is_computed():
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_part_is_measured_on_a_cpu_and_its_result_kept(tmp_path):
    ran = gpu_sh(tmp_path, "--cpu", "pipeline")
    assert ran.returncode == 0, (tmp_path / "log.txt").read_text()
    (result,) = (tmp_path / "results").glob("gpu_pipeline_inline_*.json")
    found = json.loads(result.read_text())
    assert found["device"] == "cpu"
    assert 0.3 < found["ratio"] < 3
    assert found["run_per_second"]["windows"] > 0
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.startswith("pipeline: measured (")
    assert f"{found['ratio']:.2f} times the models alone" in summary


@pytest.fixture
def stand_in(tmp_path) -> str:
    """A Python that measures nothing: trainer fails, snac never ends, the others write a result."""
    path = tmp_path / "python"
    path.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "$2" = benchmarks.results ] && exec {sys.executable} "$@"\n'
        "case $2 in benchmarks.trainer_gpu) echo broken; exit 3;;\n"
        "benchmarks.snac_gpu) sleep 100;; esac\n"
        'if [ "$1" = -m ]; then\n'
        '  echo \'{"name": "x", "hardware": "y"}\' > "$KOE_BENCHMARK_RESULTS/${2#*.}.json"; fi\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_what_fails_or_takes_too_long_costs_no_other_part_its_result(tmp_path, stand_in):
    quick = tmp_path / "benchmarks" / "gpu.sh"
    quick.parent.mkdir()
    quick.write_text(SCRIPT.read_text().replace("[snac]=130", "[snac]=1"))
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": stand_in}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(["bash", str(quick)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 2 + 8  # snac and trainer
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    ends = [line.split(" (")[0] for line in lines[:4]]
    assert ends == [
        "dnsmos: measured",
        "snac: cut off after its 1 seconds",
        "pipeline: measured",
        "trainer: failed with 3",
    ]
    assert lines[4:] == ["x, y:", "x, y:"]
    assert "broken" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("words", [("nothing",), ("--gpu",)])
def test_an_unknown_part_is_refused(tmp_path, words):
    ran = gpu_sh(tmp_path / "out", *words)
    assert ran.returncode == 64
    assert "is neither --cpu nor one of dnsmos snac pipeline trainer" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_all_parts_together_take_under_eight_minutes():
    text = SCRIPT.read_text()
    (limits,) = [line for line in text.splitlines() if line.startswith("declare -A seconds=")]
    numbers = [int(word.rpartition("=")[2].strip(")")) for word in limits.split()[2:6]]
    assert len(numbers) == 4
    assert sum(numbers) < 8 * 60


def test_the_script_is_sound():
    program = Path(sys.executable).with_name("shellcheck")
    subprocess.run([str(program), str(SCRIPT)], check=True)


def test_a_run_is_measured_from_its_first_finished_unit_on():
    done = [
        UnitDone("score", 10.0, 4.0, 100.0),  # before anything was encoded
        UnitDone("score", 14.0, 4.0, 100.0),  # of which a half lies in the window
        UnitDone("encode", 12.0, 2.0, 60.0),  # ends where the window begins
        UnitDone("encode", 16.0, 2.0, 60.0),
        UnitDone("encode", 17.0, 2.0, 90.0),
    ]
    assert in_full_swing(done) == {"score": 50 / 5, "encode": 150 / 5}


def test_a_result_is_said_in_a_line(tmp_path):
    result = {"name": "snac_gpu", "hardware": "H", "unit": "audio-s/s", "ours": 1021.75, "ratio": 2.829,
              "peer": "snac"}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert said(tmp_path) == ["snac_gpu, H: 1021.8 audio-s/s, 2.83 times snac"]
