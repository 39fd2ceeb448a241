"""Batches that find no memory are halved, lose nothing, and end in a typed error."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koe.errors import StageError
from stages.native import memory
from stages.native.memory import Bound, halving, is_out_of_memory, measured_limit, planned

_SIZES = st.lists(st.integers(1, 50), max_size=40)


class _Device:
    """Doubles numbers, and holds at most `room` of them added up."""

    def __init__(self, room: int) -> None:
        self.room, self.ran, self.failed = room, [], []

    def __call__(self, sizes) -> list[int]:
        if sum(sizes) > self.room:
            self.failed.append(list(sizes))
            raise torch.OutOfMemoryError(f"Tried to allocate {sum(sizes)} bytes")
        self.ran.extend(sizes)
        return [2 * size for size in sizes]


@given(_SIZES, st.integers(50, 400))
def test_every_item_is_computed_once_in_order(sizes, room):
    device, bound = _Device(room), Bound(1000, "the model")
    found = halving(sizes, device, sum, bound)
    assert [value for part in found for value in part] == [2 * size for size in sizes]
    assert device.ran == sizes
    assert all(len(part) > 1 for part in device.failed)
    # A failure lowers what is tried from then on, and nothing else does.
    assert bound.limit == min([1000, *(sum(part) / 2 for part in device.failed)])
    costs = [sum(part) for part in device.failed]
    assert all(later <= sooner / 2 for sooner, later in pairwise(costs))


@given(_SIZES, st.integers(0, 49), st.integers(0, 39))
def test_a_single_item_that_does_not_fit_is_a_typed_error(sizes, room, at):
    device = _Device(room)
    sizes.insert(at, 50)
    with pytest.raises(
        StageError, match="the model found too little memory for a single"
    ) as caught:
        halving(sizes, device, sum, Bound(1000, "the model"))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert device.ran == sizes[: len(device.ran)]  # in order, as far as it went
    assert "gpus_per_worker" in caught.value.remedy


def test_a_batch_over_the_bound_is_halved_without_trying():
    device = _Device(1000)
    assert halving([10] * 4, device, sum, Bound(20, "the model")) == [[20, 20], [20, 20]]
    assert halving([30], device, sum, Bound(20, "the model")) == [[60]]
    assert not device.failed


def test_it_is_said_once(caplog):
    bound = Bound(1000, "DNSMOS")
    with caplog.at_level(logging.WARNING):
        halving([10] * 8, _Device(20), sum, bound)
        halving([10] * 8, _Device(20), sum, bound)
    assert len(caplog.records) == 1
    assert "DNSMOS found too little free memory" in caplog.text


def test_the_tensors_of_a_failed_attempt_are_gone_before_the_next():
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def run(part) -> int:
        alive = Held.alive
        held = Held()
        if len(part) > 1:
            raise torch.OutOfMemoryError("no memory")
        del held
        return alive

    assert halving([1, 2, 3, 4], run, len, Bound(4, "the model")) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_what_lacks_memory_is_known_by_its_type_or_words(error):
    assert is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_failures_pass_and_lower_nothing():
    def run(part):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    bound = Bound(10, "the model")
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        halving([1, 2], run, len, bound)
    assert bound.limit == 10
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_a_batch_is_bounded_by_what_one_took(monkeypatch):
    """A GPU of 1,000 bytes, 600 of them free, on which a batch of cost 4 takes 100."""
    held = {"allocated": 50, "peak": 0}

    def run() -> None:
        held["peak"] = 150

    for name, value in {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: held.update(peak=held["allocated"]),
        "memory_allocated": lambda device: held["allocated"],
        "max_memory_allocated": lambda device: held["peak"],
        "mem_get_info": lambda device: (600, 1000),
    }.items():
        monkeypatch.setattr(memory.torch.cuda, name, value)
    device = torch.device("cuda")
    assert measured_limit(device, run, 4) == pytest.approx(0.8 * 600 / 100 * 4)
    assert measured_limit(device, run, 4, share=0.25) == pytest.approx(0.8 * 250 / 100 * 4)

    def too_much() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measured_limit(device, too_much, 4) == 0

    def broken() -> None:
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        measured_limit(device, broken, 4)


def test_workers_that_share_a_gpu_plan_with_their_share_of_it():
    assert sum(planned(1000, 1000, 0.25) for _ in range(4)) <= 1000
    assert planned(100, 1000, 0.25) <= 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full_halves_batches_down_to_what_fits():
    free, _ = torch.cuda.mem_get_info()
    item = free // 4

    def run(part) -> int:
        return torch.empty(item * len(part), dtype=torch.uint8, device="cuda").shape[0]

    found = halving(list(range(16)), run, len, Bound(16, "the model"))
    assert sum(found) == 16 * item
    limit = measured_limit(torch.device("cuda"), lambda: run([0]), 1)
    assert 2 <= limit <= 4
