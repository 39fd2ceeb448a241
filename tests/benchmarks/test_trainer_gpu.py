"""What the comparison of trainers has measured stays, whatever ends it."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks import results, trainer_gpu


def test_a_result_is_written_after_every_peer(tmp_path, monkeypatch):
    device = torch.device
    monkeypatch.setattr(torch, "device", lambda name: device("meta" if name == "meta" else "cpu"))
    monkeypatch.setattr(trainer_gpu, "ORPHEUS_3B", trainer_gpu.TINY)
    monkeypatch.setattr(trainer_gpu, "matmul_flops", lambda: 7e14)
    monkeypatch.setattr(trainer_gpu, "run_koe", lambda *_: (20_000.0, 0.01))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")

    def run_peer(name, *_):
        if name == "second":
            raise TimeoutError
        return 16_000.0

    monkeypatch.setattr(trainer_gpu, "run_peer", run_peer)
    peers = ["first", "second"]
    options = argparse.Namespace(tiny=False, repeats=1, steps=3, peers=peers, micro_batch_rows=2)
    with pytest.raises(TimeoutError):
        trainer_gpu.compare(tmp_path, options)
    (path,) = (tmp_path / "results").iterdir()
    found = json.loads(path.read_text())
    assert found["peer"] == "first"
    assert found["ratio"] == 1.25
    assert found["tokens_per_second_of_peers"] == {"first": [16_000.0]}
    assert 0 < found["mfu_causal_of_measured_peak"] < found["mfu_full_of_measured_peak"] < 1
