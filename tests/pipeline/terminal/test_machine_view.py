"""What `koe plan` says of a machine: how long it takes, what is short and what to change."""

from __future__ import annotations

import json
import math

from koe.stage import Resources
from pipeline.estimate import StageEstimate, on_machine_of
from pipeline.estimate.machine import Machine, StageLoad, on_machine
from pipeline.terminal.machine import machine_json, machine_view
from tests.pipeline.terminal.test_plan_view import printed

ON_GPU = Resources(cpus=1.0, gpus=1.0, shares_gpu=True)
SCORE = StageLoad("score", ON_GPU, 36e3, decode_seconds=360e3, read_bytes=9e12)
ENCODE = StageLoad("encode", ON_GPU, 72e3, decode_seconds=72e3)
INGEST = StageLoad("ingest", Resources(cpus=0.25), 3600.0)


def said(*stages: StageLoad, **machine: float) -> str:
    described = Machine(**machine)
    return " ".join(printed(machine_view([on_machine(stages, described)], described)).split())


def test_a_gpu_that_waits_for_decoding_is_named_with_what_feeds_it():
    text = said(INGEST, SCORE, ENCODE, cores=96, gpus=8)
    assert "On 96 cores and 8 GPUs" in text
    assert "score 3.1 h decoding 11.0" in text  # four threads each
    assert "encode 2.5 h GPUs 2.0" in text
    assert "ingest 9.4 s cores –" in text
    assert "ingest, score, encode, together: 5.6 h. Needed are GPUs for 5.6 h, cores for" in text
    assert "The GPU of score waits for its 4 threads that decode." in text
    assert "With --set score.cpus_per_worker=10 it takes 3.8 h, and more GPUs would help" in text
    assert "Up to the shards about 5.6 h, without starts and ends." in text
    assert "9.0 TB of audio are read, which takes no longer than this from 444.4 MB/s on" in text


def test_where_no_setting_helps_the_machine_is_to_grow():
    assert "More GPUs would help, and nothing else." in said(INGEST, ENCODE, cores=96, gpus=8)
    assert "More cores would help, and nothing else." in said(INGEST, ENCODE, cores=8, gpus=8)
    alone = said(INGEST, cores=96)
    assert "ingest 9.4 s cores – Up to the shards about 9.4 s" in alone
    slow = said(INGEST, SCORE, cores=960, gpus=80, read_bytes_per_second=1e6)
    assert "More reading would help, and nothing else." in slow
    assert "--read-megabytes" not in slow


def test_a_machine_without_the_parts_is_told_so():
    text = said(ENCODE, cores=96)
    assert "encode never GPUs" in text
    assert "encode: never, since the machine has no GPUs." in text
    assert "Up to the shards" not in text
    text = said(INGEST, cores=96, gpus=8)
    assert "No stage uses a GPU: score.provider and snac.device decide it." in text


def test_json_holds_null_for_what_never_ends():
    machine = Machine(cores=4)
    found = machine_json([on_machine([ENCODE], machine)], machine)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["cores"] == 4
    assert found["chains"][0]["seconds"] is None
    assert found["chains"][0]["short"] == ["GPUs"]


def test_chains_follow_one_another_and_training_is_none():
    def stage(name: str, hours: float, needs: Resources | None, modality: str) -> StageEstimate:
        return StageEstimate(name, 9, 1.0, {}, 9.0, {}, hours, hours, 0.0, 0.0, resources=needs,
                             modality=modality)  # fmt: skip

    one = Resources()
    estimates = [
        stage("tokenize (text)", 1.0, one, "text"),
        stage("ingest", 2.0, one, "speech"),
        stage("score", 3.0, one, "speech"),
        stage("interleave", 4.0, one, "speech"),
        stage("train", 100.0, None, "speech"),
    ]
    chains = on_machine_of(estimates, Machine(cores=2))
    assert [[one.stage for one in chain.stages] for chain in chains] == [
        ["tokenize (text)"],
        ["ingest", "score"],
        ["interleave"],
    ]
    assert [chain.seconds / 3600 for chain in chains] == [0.5, 2.5, 2.0]
    assert math.isnan(chains[0].stages[0].cores_per_gpu)
