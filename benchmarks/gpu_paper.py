"""A machine of 8 GPUs and 96 cores on paper: `python -m benchmarks.gpu_paper` prints the table of docs/cluster.md.

The rates of an H200 are those of `results/`, the aims are nobody's measurement. Decoding and the size of
the published corpus are those of docs/performance.md. It measures nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.results import COMMITTED
from koe.stage import Resources
from pipeline.estimate.machine import Machine, OnMachine, StageLoad, on_machine

MACHINE = Machine(cores=96, gpus=8)
WINDOWS, AUDIO_SECONDS = 55e6, 100e6  # of the published corpus
AIM_WINDOWS, AIM_AUDIO_SECONDS = 10_000.0, 6_000.0  # a second, on one H200
# Seconds of a core for a second of audio: decoding, and resampling to one rate. Opus was measured with
# its resampling, which is taken to be that of FLAC.
DECODING = {"FLAC": (0.54e-3, 0.20e-3), "Opus": (2.6e-3, 0.20e-3)}
ON_GPU = Resources(cpus=1.0, gpus=1.0, shares_gpu=True)


@dataclass(frozen=True)
class Rates:
    """What one GPU does a second, and where it is from."""

    source: str
    windows: float
    audio_seconds: float


def rates() -> list[Rates]:
    """Return the measured rates and the aims."""
    speeds, encoding = _result("dnsmos_gpu")["speeds"], _result("snac_gpu")["ours"]
    return [
        Rates("measured, FP32", speeds["koe"], encoding),
        Rates("measured, score BF16", speeds["koe, bf16"], encoding),
        Rates("aimed at, not measured", AIM_WINDOWS, AIM_AUDIO_SECONDS),
    ]


def _result(name: str) -> dict[str, Any]:
    """Read the first result of a benchmark, which the page speaks of."""
    return json.loads(sorted(COMMITTED.glob(f"{name}_nvidia-h200_*.json"))[0].read_text("utf-8"))


def stages(found: Rates, audio: str) -> list[StageLoad]:
    """Return score and encode of the published corpus, each decoding for itself."""
    decoding = sum(DECODING[audio]) * AUDIO_SECONDS
    return [
        StageLoad("score", ON_GPU, WINDOWS / found.windows, decoding),
        StageLoad("encode", ON_GPU, AUDIO_SECONDS / found.audio_seconds, decoding),
    ]


def decoded_once(separate: list[StageLoad], audio: str) -> list[StageLoad]:
    """Return the same stages where encode only resamples what score has decoded."""
    score, encode = separate
    return [score, replace(encode, decode_seconds=DECODING[audio][1] * AUDIO_SECONDS)]


def main() -> int:
    print("\n".join(table()))
    return 0


def table() -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        "| rates of a GPU | audio | score, encode: GPU-hours | cores a GPU needs | as by default "
        "| with `cpus_per_worker` | short of | one decoding for both saves |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for found in rates():
        for audio in DECODING:
            yield _row(found, audio)


def _row(found: Rates, audio: str) -> str:
    separate = stages(found, audio)
    planned = on_machine(separate, MACHINE)
    once = on_machine(decoded_once(separate, audio), MACHINE)
    saved = 1 - once.seconds_then / planned.seconds_then
    cells = [
        found.source,
        audio,
        ", ".join(f"{one.worker_seconds / 3600:.1f}" for one in separate),
        ", ".join(f"{one.cores_per_gpu:.1f}" for one in separate),
        f"{planned.seconds / 3600:.2f} h",
        _advised(planned),
        " and ".join(planned.short_then),
        f"{max(saved, 0):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _advised(planned: OnMachine) -> str:
    if not planned.cpus:
        return "the same"
    cpus = ", ".join(f"{stage} {number}" for stage, number in planned.cpus.items())
    return f"{planned.seconds_then / 3600:.2f} h ({cpus})"


if __name__ == "__main__":
    sys.exit(main())
