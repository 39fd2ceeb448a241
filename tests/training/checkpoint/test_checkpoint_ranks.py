import resource
from pathlib import Path

import pytest
import torch

from koe.errors import StorageError
from tests.full_disk import full_disk
from tests.training.helpers import assert_same_weights
from tests.training.llamas import adamw, loss_of, tiny_llama
from tests.training.ranks import run_ranks
from tests.training.saving import RANKS, STATE, newest, progress_of, steps_in, tensors_of, writer_in
from training.checkpoint.manifest import step_name
from training.checkpoint.reader import load_checkpoint, load_weights
from training.checkpoint.tensor_files import model_tensors
from training.model.distributed import Ranks, gradient_sync, parallelise

pytestmark = pytest.mark.slow


def open_sharded(ranks: Ranks, parallel, seed=0):
    plain = tiny_llama(seed)
    model = parallelise(
        plain, ranks, parallel, "fp32", compile=False, activation_checkpointing=False
    )
    return plain, model, adamw(plain)


def take_steps(ranks: Ranks, model, optimizer, numbers) -> None:
    for number in numbers:
        with gradient_sync(model, last=True):
            loss_of(model, ranks.world * number + ranks.rank).backward()
        optimizer.step()
        optimizer.zero_grad()


def in_ranks(ranks: Ranks, folder: Path) -> None:
    found: dict = {}
    for parallel in ("fsdp", "ddp"):
        plain, model, optimizer = open_sharded(ranks, parallel)
        take_steps(ranks, model, optimizer, range(2))
        found[parallel] = tensors_of(plain, optimizer)
        torch.manual_seed(ranks.rank)
        with writer_in(folder / parallel, ranks) as writer:
            writer.start(progress_of(2), model, optimizer, STATE)
            random = torch.rand(2)
            polled = []
            for number in range(2, 6):  # steps and writing use the ranks' wires at once
                take_steps(ranks, model, optimizer, [number])
                polled.append(writer.poll())
            polled.append(writer.finish())
        path = folder / parallel / step_name(2)
        assert [p for p in polled if p] == [path]
        for other in ("fsdp", "ddp"):
            plain, _, optimizer = open_sharded(ranks, other, seed=1)
            assert load_checkpoint(path, plain, optimizer, ranks) == (STATE, True)
            assert torch.equal(torch.rand(2), random)
            found[f"{parallel} as {other}"] = tensors_of(plain, optimizer)
    found["failure"] = one_rank_cannot_write(ranks, folder / "failing")
    torch.save(found, folder / f"{ranks.rank}.pt")


def one_rank_cannot_write(ranks: Ranks, folder: Path) -> str:
    _, model, optimizer = open_sharded(ranks, "fsdp")
    message = "no error"
    with writer_in(folder, ranks) as writer:
        writer.start(progress_of(1), model, optimizer, STATE)
        writer.finish()
        with full_disk(4096 if ranks.rank == 1 else resource.RLIM_INFINITY):
            try:
                writer.start(progress_of(2), model, optimizer, STATE)
                writer.finish()
            except StorageError as error:
                message = str(error)
        ranks.wait()
        writer.start(progress_of(3), model, optimizer, STATE)
        writer.finish()
    return message


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    run_ranks(in_ranks, 2, folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("written", ["fsdp", "ddp"])
def test_what_two_ranks_save_is_loaded_by_any_number(two_ranks, written):
    folder, ranks = two_ranks
    path = folder / written / "step-00000002"
    assert newest(folder / written).path == path
    for found in ranks:
        assert_same_weights(found[written], ranks[0][written])
        for read in ("fsdp", "ddp"):
            assert_same_weights(found[f"{written} as {read}"], found[written])
    model = tiny_llama(seed=1)
    optimizer = adamw(model)
    before = torch.get_rng_state()
    assert load_checkpoint(path, model, optimizer, RANKS) == (STATE, False)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(tensors_of(model, optimizer), ranks[0][written])
    alone = tiny_llama(seed=1)
    load_weights(path, alone)
    assert_same_weights(model_tensors(alone), model_tensors(model))


@pytest.mark.parametrize("written", ["fsdp", "ddp"])
def test_ranks_share_the_writing(two_ranks, written):
    path = two_ranks[0] / written / "step-00000002"
    for kind in ("", "moments_"):
        sizes = [(path / f"__{rank}_{kind}0.distcp").stat().st_size for rank in range(2)]
        assert max(sizes) < 1.5 * min(sizes), kind
    assert (path / "rng-00001.pt").exists()


def test_two_ranks_train_on_the_same_course_as_one(two_ranks):
    model = tiny_llama()
    optimizer = adamw(model)
    for number in range(2):
        for rank in range(2):
            (loss_of(model, 2 * number + rank) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = tensors_of(model, optimizer)
    for written in ("fsdp", "ddp"):
        for name, tensor in two_ranks[1][0][written].items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_what_one_rank_cannot_write_all_ranks_raise(two_ranks):
    folder, ranks = two_ranks
    for found in ranks:
        assert "cannot be written because rank 1:" in found["failure"]
        assert "rank 0:" not in found["failure"]
    assert steps_in(folder / "failing") == [1, 3]
