"""Triton's kernels: in its interpreter they agree with torch, and they compile for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def _output(module: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.stages.snac.{module}", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_agree_with_torch_in_tritons_interpreter():
    assert float(_output("interpreted", TRITON_INTERPRET="1")) < 2e-5


@pytest.mark.slow
def test_kernels_compile_for_gpus_without_one(tmp_path):
    """To machine code, in so few registers that many threads can wait for memory at once."""
    said = _output("compiled", "80", "90", TRITON_CACHE_DIR=str(tmp_path))
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == said.count(" bytes\n") == 8
    assert max(registers) <= 102  # 20 of an SM's 64 warps
    assert set(re.findall(r"(\d+) bytes spill stores", said)) == {"0"}
