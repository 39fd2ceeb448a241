"""Law: a run that was stopped and resumed equals one that was not, bit by bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from koe.errors import ConfigError
from tests.training.helpers import (
    assert_same_weights,
    one_thread,
    saved_tensors,
    small_config,
    small_shards,
)
from tests.training.ranks import run_ranks
from training import loop
from training.config import EarlyStoppingConfig, EvaluationConfig, GuardConfig
from training.logs import EVALUATIONS_FILE
from training.metrics import RunLog, read_metrics
from training.model.distributed import Ranks, single

__all__ = ["one_thread"]  # applies to every test here

RANKS = single("cpu")
TIMES = {"seconds", "tokens_per_second", "data_wait_seconds"}


class Stop(Exception):
    pass


# All that a checkpoint may hold: its moves must survive a resume as well.
EVERYTHING = {
    "schedule": "wsd", "warmup_steps": None, "warmup_share": 0.3, "ema_decay": 0.9,
    "early_stopping": EarlyStoppingConfig(evaluations=3, min_improvement=0.01),
    "evaluation": EvaluationConfig(every_steps=1, max_rows=2, prompts=0),
    "keep_checkpoints": 1, "keep_every_steps": 3, "keep_weights_only": True,
    "guard": GuardConfig(roll_back_steps=1),
}  # fmt: skip


def assert_same_run(left, right, steps, config=None):
    config = config or small_config(max_steps=steps)
    assert_same_weights(*(saved_tensors(out, steps, config) for out in (left, right)))
    states = [
        {name: (out / f"checkpoints/step-{steps:08d}" / name).read_bytes() for name in files}
        for out in (left, right)
        for files in (("rng-00000.pt", "state.json"),)
    ]
    assert states[0] == states[1]
    rows, rows_2 = (
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out)]
        for out in (left, right)
    )
    assert rows == rows_2
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    evaluations = [(out / EVALUATIONS_FILE).read_bytes() for out in (left, right)]
    assert evaluations[0] == evaluations[1]
    names = [sorted(path.name for path in out.glob("checkpoints/*/*")) for out in (left, right)]
    assert names[0] == names[1]


@pytest.mark.law
@pytest.mark.parametrize(
    "changes",
    [{"precision": "fp32"}, {"precision": "bf16"}, EVERYTHING],
    ids=["fp32", "bf16", "everything"],
)
def test_training_resumes_exactly(tmp_path, changes):
    shards = small_shards(tmp_path / "shards")
    config = small_config(**changes, max_steps=6)
    loop.train(config, shards, tmp_path / "whole", RANKS)

    # Stop after step 5 of a run that saves at 2, 4 and its end, then lose what step 5 saved.
    def stop_at_5(self, row, step=RunLog.step):
        step(self, row)
        if row["step"] == 5:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", stop_at_5)
        with pytest.raises(Stop):
            loop.train(config, shards, tmp_path / "parts", RANKS)
    assert read_metrics(tmp_path / "parts")[-1]["step"] == 5
    torch.manual_seed(12345)  # a resumed process starts with another random state
    loop.train(config, shards, tmp_path / "parts", RANKS)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6, config)


@pytest.mark.law
def test_corrupt_checkpoint_resumes_exactly(tmp_path, capsys):
    shards = small_shards(tmp_path / "shards")
    config = small_config(max_steps=6)
    loop.train(config, shards, tmp_path / "whole", RANKS)
    shutil.copytree(tmp_path / "whole", tmp_path / "corrupt")
    (tmp_path / "corrupt/checkpoints/step-00000006/__0_0.distcp").write_bytes(b"corrupt")
    loop.train(config, shards, tmp_path / "corrupt", RANKS)
    said = capsys.readouterr().err
    assert "skipping a corrupt checkpoint" in said
    assert "resuming after step 4" in said
    assert_same_run(tmp_path / "whole", tmp_path / "corrupt", 6)


@pytest.mark.slow
@pytest.mark.law
def test_training_kill_and_resume_same_bytes(tmp_path):
    shards = small_shards(tmp_path / "shards")
    config = small_config(max_steps=40, checkpoint_every_steps=3)
    loop.train(config, shards, tmp_path / "whole", RANKS)
    (tmp_path / "train.json").write_text(config.model_dump_json())
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "training", "--config", str(tmp_path / "train.json")]
    command += ["--shards", str(shards), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(read_metrics(out)) < 7 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    loop.train(config, shards, out, RANKS)
    assert_same_run(tmp_path / "whole", out, 40)


def test_finished_training_does_nothing(tmp_path, capsys):
    shards = small_shards(tmp_path / "shards")
    config = small_config(max_steps=2)
    loop.train(config, shards, tmp_path / "out", RANKS)
    before = (tmp_path / "out/metrics.jsonl").read_bytes()
    assert loop.train(config, shards, tmp_path / "out", RANKS) == 2
    assert "nothing to train" in capsys.readouterr().err
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == before


def test_other_shards_are_refused(tmp_path):
    shards = small_shards(tmp_path / "shards")
    others = small_shards(tmp_path / "others", seed=1)
    out = tmp_path / "out"
    loop.train(small_config(max_steps=2), shards, out, RANKS)
    with pytest.raises(ConfigError, match="other shards"):
        loop.train(small_config(max_steps=4), others, out, RANKS)
    asked = small_config(max_steps=4, resume_on_other_shards=True)
    assert loop.train(asked, others, out, RANKS) == 4
    manifest = json.loads((out / "checkpoints/step-00000004/manifest.json").read_text())
    assert manifest["progress"]["steps"] == 4


def whole_and_in_parts(ranks: Ranks, shards, folder) -> None:
    """Train without a break, and with one of all ranks after step 5, behind the checkpoint of 4."""
    adjust_rate = loop.adjust_rate

    def stop_after_5(run):
        adjust_rate(run)
        if run.progress.steps == 5:
            raise Stop

    for parallel in ("fsdp", "ddp"):
        config = of_two_ranks(parallel)
        loop.train(config, shards, folder / f"{parallel}-whole", ranks)
        loop.adjust_rate = stop_after_5
        with pytest.raises(Stop):
            loop.train(config, shards, folder / f"{parallel}-parts", ranks)
        loop.adjust_rate = adjust_rate
        ranks.wait()
        torch.manual_seed(12345 + ranks.rank)
        loop.train(config, shards, folder / f"{parallel}-parts", ranks)
        impatient = EarlyStoppingConfig(evaluations=1, min_improvement=100)
        config = config.model_copy(update={"early_stopping": impatient})
        assert loop.train(config, shards, folder / f"{parallel}-stopped", ranks) == 2


def of_two_ranks(parallel):
    return small_config(
        **EVERYTHING, max_steps=6, workers=2, micro_batch_rows=1, accumulation_steps=2,
        parallel=parallel,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.law
def test_two_ranks_resume_exactly_with_everything_on(tmp_path):
    shards = small_shards(tmp_path / "shards")
    run_ranks(whole_and_in_parts, 2, shards, tmp_path)
    for parallel in ("fsdp", "ddp"):
        folders = [tmp_path / f"{parallel}-{name}" for name in ("whole", "parts")]
        assert_same_run(*folders, 6, of_two_ranks(parallel))
