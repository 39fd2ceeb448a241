"""The script that waits for a GPU runs on a CPU, with a network that costs nothing."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import dnsmos_gpu
from tests.stages.dnsmos.simple import simple_parts


@pytest.fixture
def written(monkeypatch) -> list[dict[str, Any]]:
    def speechmos(with_p808: bool, on_gpu: bool = False):
        return lambda audio: ([3.0, 3.0, float(np.abs(audio).mean())], False)

    names = ("fp32", "tf32", "bf16")
    monkeypatch.setattr(
        dnsmos_gpu, "_networks", lambda device: dict.fromkeys(names, simple_parts())
    )
    monkeypatch.setattr(dnsmos_gpu, "speechmos", speechmos)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(
        dnsmos_gpu, "write_figures", lambda name, **found: written.append({"name": name, **found})
    )
    return written


@pytest.mark.slow
def test_every_part_is_measured_and_a_trial_writes_nothing(monkeypatch, capsys, written):
    command = ["dnsmos_gpu", "--device", "cpu", "--clips", "3", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    assert dnsmos_gpu.main() == 0
    shown = capsys.readouterr().out
    for part in ("batched", "speechmos", "one_clip_at_a_time", "scores", "network_alone", "stage"):
        assert part in shown
    assert not written


def test_differences_are_to_fp32_and_near_clips_are_settled():
    exact = [2.51, 2.49, 3.0, 1.0]
    scores = {"fp32": exact, "bf16": [2.495, 2.489, 3.01, 1.0], "tf32x3": exact}
    found = dnsmos_gpu._differences({**scores, "speechmos": exact[:2]})
    assert found["largest_difference_to_speechmos"] == 0
    assert found["bf16"] == {
        "largest_difference": pytest.approx(0.015),
        "decisions_changed": 1,
        "scored_again_in_fp32": 2,
        "decisions_changed_then": 0,
    }
    assert found["tf32x3"]["scored_again_in_fp32"] == 0
