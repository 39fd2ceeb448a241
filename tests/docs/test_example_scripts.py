"""The scripts of `examples/` are run with stand-ins for the programs that they call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.calling import parse_click, parse_koe
from tests.docs.blocks import EXAMPLES
from tests.docs.test_commands import parse_python

SCRIPTS = sorted(EXAMPLES.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    program = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run(
        [program, "-e", "SC1091", script], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def stand_ins(tmp_path: Path, nodes: int, **others: str) -> dict[str, str]:
    """Make programs that only write down how they were called, and the environment of a Slurm job.

    `others`: what a program is to do after that, by its name.
    """
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    note = f'{{ printf "%s\037" "$(basename "$0")" "$@"; echo; }} >> {tmp_path / "calls"}\n'
    names = "\n".join(f"echo node-{number}" for number in range(nodes))
    does = {
        "ray": note, "koe": note, "python": f'{note}echo "$RANK $LOCAL_RANK $WORLD_SIZE"\n',
        "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done; exec "$@"\n',
        "scontrol": f'if [ "$1" = show ]; then {names}\nelse {note}fi\n',
        "hostname": "echo 10.0.0.1 fe80::1\n", "sleep": "",
    }  # fmt: skip
    for name, body in does.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}{others.get(name, '')}")
        (programs / name).chmod(0o755)
    return {
        "PATH": os.environ["PATH"], "KOE_VENV": str(tmp_path / "venv"), "SLURM_JOB_ID": "7123456",
        "SLURM_JOB_NODELIST": "node-[0-3]", "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "32", "SLURM_MEM_PER_NODE": "98304", "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    }  # fmt: skip


def calls_in(tmp_path: Path) -> list[list[str]]:
    return [line.split("\037")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]


def called_by(script: str, tmp_path: Path, nodes: int, *arguments: str) -> list[list[str]]:
    """Run a script with stand-ins for all programs; return the calls."""
    command = ["bash", str(EXAMPLES / script), *arguments]
    environment = stand_ins(tmp_path, nodes)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return calls_in(tmp_path)


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_slurm_script_starts_ray_on_every_node_and_then_the_run(nodes, tmp_path):
    from ray.scripts.scripts import cli as ray_cli

    calls = called_by("slurm_stages.sh", tmp_path, nodes, "/shared/pipeline.yaml")
    starts = [call for call in calls if call[:2] == ["ray", "start"]]
    assert sum("--head" in call for call in starts) == 1
    assert sum("--head" not in call for call in starts) == (nodes > 1)
    for call in calls:
        if call[0] == "ray":
            parse_click(ray_cli, *call)
    (koe,) = (call for call in calls if call[0] == "koe")
    parse_koe(*koe[1:])
    (address,) = (word for word in koe if word.startswith("ray.address="))
    ip, port = address.removeprefix("ray.address=").split(":")
    assert ip == "10.0.0.1"
    assert 1024 < int(port) < 65536
    assert all("--memory=68812800000" in call for call in starts)


@pytest.mark.parametrize("code", [0, 1, 75, 143])
def test_the_slurm_script_of_training_calls_the_trainer_and_requeues(code, tmp_path, monkeypatch):
    environment = stand_ins(tmp_path, 2, python=f"echo $MASTER_ADDR:$MASTER_PORT; exit {code}\n")
    command = ["bash", str(EXAMPLES / "slurm_train.sh"), "/shared/run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.split() == ["9", "1", "16", "node-0:43456"]
    calls = calls_in(tmp_path)
    assert calls[0][:3] == ["python", "-m", "training"]
    parse_python(["-m", "training.__main__", *calls[0][3:]], monkeypatch)
    assert calls[1:] == ([["scontrol", "requeue", "7123456"]] if code == 75 else [])


def test_the_slurm_script_passes_the_notice_on_to_koe_alone(tmp_path):
    started = tmp_path / "started"
    waits = f"trap 'exit 75' USR1; touch {started}; while :; do /bin/sleep 0.1; done\n"
    environment = stand_ins(tmp_path, 1, koe=waits)
    command = ["bash", str(EXAMPLES / "slurm_train_ray.sh"), "/shared/pipeline.yaml"]
    job = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 75
    koe, requeue = calls_in(tmp_path)
    parse_koe(*koe[1:])
    assert requeue == ["scontrol", "requeue", "7123456"]


def test_a_script_without_its_argument_says_what_to_name(tmp_path):
    for script in SCRIPTS:
        done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"sbatch {script.name}" in done.stderr
