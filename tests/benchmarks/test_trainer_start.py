"""The benchmark of a training's start measures until the first step, and says why there is none."""

import sys

import pytest

from benchmarks.trainer_start import commands, first_step
from koe.errors import StageError
from training.config import TrainConfig

WRITES = """
import sys, time, pathlib
time.sleep(0.2)
out = pathlib.Path(sys.argv[1])
out.mkdir()
(out / "metrics.jsonl").write_text("{}\\n")
time.sleep(0.2)
"""


def test_the_time_ends_with_the_first_step(tmp_path):
    taken = first_step([sys.executable, "-c", WRITES], tmp_path / "out")
    assert taken > 0.2


@pytest.mark.parametrize("code", ["raise SystemExit('no room')", "print('no room')"])
def test_a_process_that_ends_before_is_told_with_its_words(code, tmp_path):
    with pytest.raises(StageError, match="no room"):
        first_step([sys.executable, "-c", code], tmp_path / "out")


def test_each_launcher_is_given_a_config_that_is_valid(tmp_path):
    found = commands("cpu", 2, tmp_path / "shards")
    configs = [
        TrainConfig.model_validate_json(found[name][3]) for name in ("Ray", "inline, one process")
    ]
    assert [(config.launcher, config.workers) for config in configs] == [("ray", 2), ("inline", 1)]
    config = TrainConfig.model_validate_json((tmp_path / "config.json").read_bytes())
    assert (config.workers, config.max_steps) == (2, 1)
