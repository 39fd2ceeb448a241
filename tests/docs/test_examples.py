"""The files of `examples/` are checked as far as they can be without a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.execution.placement import missing
from tests.calling import parse_click, parse_koe
from tests.docs.blocks import ROOT, blocks
from tests.docs.test_commands import parse_python

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
GIGABYTE = {"Gi": 2**30, "Mi": 2**20}

# The fields of ray.io/v1 that the example may use, with the type of each, as the reference of KubeRay's
# custom resources has them (https://docs.ray.io/en/master/kuberay/references/api.html). A dict is an object
# with these fields only, a list one of such objects; of Kubernetes' own pods only what is used is listed.
_RESOURCES = {"requests": Any, "limits": Any}
_POD = {
    "spec": {
        "nodeSelector": Any,
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
        "containers": [
            {
                "name": str,
                "image": str,
                "resources": _RESOURCES,
                "envFrom": [{"secretRef": {"name": str}}],
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "configMap": {"name": str}, "emptyDir": {"sizeLimit": str}}],
    }
}
_WORKERS = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": Any,
    "template": _POD,
}
_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int, "resources": _RESOURCES},
    "headGroupSpec": {"rayStartParams": Any, "template": _POD},
    "workerGroupSpecs": [_WORKERS],
}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "entrypointNumCpus": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "rayClusterSpec": _CLUSTER,
    },
}


def check_fields(value: Any, schema: Any, path: str = "") -> None:
    """Raise AssertionError for a field that the schema does not have, or of another type."""
    if schema is Any:
        return
    if isinstance(schema, dict):
        assert isinstance(value, dict), path
        unknown = value.keys() - schema.keys()
        assert not unknown, f"{path} has no {unknown}"
        for name, item in value.items():
            check_fields(item, schema[name], f"{path}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), path
        for number, item in enumerate(value):
            check_fields(item, schema[0], f"{path}[{number}]")
    else:
        assert type(value) is schema, f"{path} is {value!r}"


@pytest.fixture(scope="module")
def kuberay() -> dict[str, Any]:
    documents = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text("utf-8"))
    return {document["kind"]: document for document in documents}


def settings_of(text: str, folder: Path) -> PipelineConfig:
    path = folder / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, [])


def test_kuberay_has_only_fields_that_exist(kuberay):
    job = kuberay["RayJob"]
    check_fields(job, RAY_JOB)
    assert job["apiVersion"] == "ray.io/v1"
    for group in pods(job).values():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    with pytest.raises(AssertionError, match=r"has no .'autoscaling'"):
        check_fields({**job, "spec": {**job["spec"], "autoscaling": True}}, RAY_JOB)


@pytest.mark.parametrize("block", [b.text for b in blocks("yaml") if b.page == "cluster.md"])
def test_the_settings_of_the_page_are_valid(block, tmp_path):
    needed = {
        "run_dir": "run",
        "sources": {"text": [{"name": "t", "kind": "jsonl", "paths": ["t"]}]},
    }
    settings_of(yaml.safe_dump(needed | yaml.safe_load(block)), tmp_path)


def pods(job: dict[str, Any]) -> dict[str, Any]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **groups}


def test_the_ray_of_kuberay_is_the_one_that_is_tested(kuberay):
    version = kuberay["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_kubernetes_mounts_and_names_fit_together(kuberay):
    names = {"configMap": kuberay["ConfigMap"]["metadata"]["name"]}
    images, secrets = set(), set()
    for group in pods(kuberay["RayJob"]).values():
        spec = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for volume in volumes.values():
            assert (
                volume.get("configMap", {"name": names["configMap"]})["name"] == names["configMap"]
            )
        (container,) = spec["containers"]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} == volumes.keys()
        images.add(container["image"])
        secrets.add(container["envFrom"][0]["secretRef"]["name"])
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert all(requests[name] == amount for name, amount in limits.items())
    assert len(images) == len(secrets) == 1


def test_the_entrypoint_and_its_settings_are_valid(kuberay, tmp_path):
    program, *arguments = shlex.split(kuberay["RayJob"]["spec"]["entrypoint"])
    assert program == "koe"
    parse_koe(*arguments)
    data = kuberay["ConfigMap"]["data"]
    mounts = pods(kuberay["RayJob"])["head"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert arguments[arguments.index("-c") + 1] == f"{mounts[0]['mountPath']}/{next(iter(data))}"
    assert settings_of(data["pipeline.yaml"], tmp_path).ray.address == "auto"


def as_node(group: dict[str, Any]) -> dict[str, float]:
    """Return what Ray makes of a pod: its limits, 30 % of the memory apart for the object store."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    number, unit = re.fullmatch(r"(\d+)(\w+)", limits["memory"]).groups()
    others = json.loads(group["rayStartParams"].get("resources", '"{}"').strip("'"))
    return {
        "CPU": float(limits["cpu"]),
        "GPU": float(limits.get("nvidia.com/gpu", 0)),
        "memory": 0.7 * int(number) * GIGABYTE[unit],
        **json.loads(others),
    }


@pytest.mark.parametrize("which", ["kuberay.yaml", "cluster.yaml"])
def test_one_node_of_each_group_holds_a_worker_of_every_stage(which, kuberay, tmp_path):
    own = kuberay["ConfigMap"]["data"]["pipeline.yaml"]
    text = own if which == "kuberay.yaml" else (EXAMPLES / which).read_text("utf-8")
    config = settings_of(text, tmp_path)
    groups = pods(kuberay["RayJob"])
    del groups["head"]  # with no CPUs of its own
    nodes = {name: as_node(group) for name, group in groups.items()}
    assert nodes["cpu-stable"]["stable"] == 1
    speech = ("ingest", "score", "encode", "tokenize")
    needs = {name: getattr(config, name).resources.amounts() for name in speech}
    assert missing(needs, list(nodes.values())) == ""
    order = {"interleave": config.interleave.resources.amounts()}
    assert missing(order, [nodes["cpu-stable"]]) == ""
    assert missing(order, [nodes["cpu-spot"], nodes["gpu"]]) != ""


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


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, lines joined."""
    text = (EXAMPLES / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


def test_the_image_has_what_koe_needs():
    found = instructions()
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV"}
    assert {name for name, _ in found} <= known
    version = re.search(r"python:(\d+)\.(\d+)", found[0][1])
    assert tuple(map(int, version.groups())) in ((3, 11), (3, 12))
    runs = [arguments for name, arguments in found if name == "RUN"]
    assert "gcc" in shlex.split(runs[0])
    assert "wget" in shlex.split(runs[0])
    (install,) = (run for run in runs if " pip install " in run)
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints.txt"
    extras = re.fullmatch(
        r"\.\[(.*)\]", next(word for word in words if word.startswith(".["))
    ).group(1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert [arguments for name, arguments in found if name == "USER"] == ["koe"]


def test_what_the_image_tries_at_its_end_works():
    last = [arguments for name, arguments in instructions() if name == "RUN"][-1]
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", last], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert shutil.which("koe", path=programs)
