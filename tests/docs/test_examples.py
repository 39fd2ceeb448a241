"""The files of `examples/` are checked as far as they can be without a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.execution.placement import missing
from tests.calling import parse_koe
from tests.docs.blocks import EXAMPLES, ROOT, blocks

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
