"""Law: the number of ranks changes neither the rows of a step, nor its loss and gradients."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.training.helpers import (
    gradients,
    one_thread,
    small_config,
    small_model,
    small_shards,
)
from training import loop
from training.data import ShardRows, StepLoader
from training.distributed import Ranks, from_process_group, single
from training.metrics import read_metrics

__all__ = ["one_thread"]  # applies to every test here

ROWS_A_STEP = 8


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def join(rank: int, world: int, port: int) -> Ranks:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    return from_process_group("cpu", 0)


def config_for(world: int, **changes):
    return small_config(
        workers=world, micro_batch_rows=2, accumulation_steps=ROWS_A_STEP // 2 // world, **changes
    )


def one_step(shards: Path, ranks: Ranks, step: int = 1):
    config, inner = config_for(ranks.world), small_model()
    model = ranks.wrap(inner)
    rows = ShardRows(shards, "train")
    with StepLoader(
        rows, rows_a_step=ROWS_A_STEP, micro_batch_rows=2, rank=ranks.rank, world=ranks.world,
        num_embeddings=inner.num_embeddings,
    ) as loader:  # fmt: skip
        losses = loop.accumulate_gradients(model, loader.batches(step), ranks, config.precision)
    return losses, gradients(inner)


def in_world(rank: int, world: int, port: int, shards: Path, out: Path) -> None:
    ranks = join(rank, world, port)
    losses, grads = one_step(shards, ranks)
    torch.save({"losses": vars(losses), "gradients": grads}, out / f"{rank}.pt")
    loop.train(config_for(world), shards, out / "run", ranks)
    stop_by_one_bad_rank(shards, out, ranks)
    dist.destroy_process_group()


def stop_by_one_bad_rank(shards: Path, out: Path, ranks: Ranks) -> None:
    """Make the hidden states NaN on the last rank only, and note what each rank did."""
    build, seen = loop.build_optimizer, {}

    def spy(model, config):
        seen["model"] = model
        if ranks.rank == ranks.world - 1:
            model.llama.model.norm.register_forward_hook(lambda *a: a[2] * float("nan"))
        return build(model, config)

    loop.build_optimizer = spy
    before = small_model().llama.state_dict()
    message = "no error"
    try:
        loop.train(config_for(ranks.world), shards, out / "bad", ranks)
    except loop.NotFinite as error:
        message = str(error)
    after = seen["model"].llama.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    (out / f"{ranks.rank}.txt").write_text(f"{same} {message}")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Run `in_world` once: starting two processes costs more than all that they do."""
    folder = tmp_path_factory.mktemp("two_ranks")
    shards = small_shards(folder / "shards", num_rows=20)
    mp.spawn(in_world, args=(2, free_port(), shards, folder), nprocs=2, join=True)
    return folder


def test_gradients_of_two_ranks_are_those_of_one(two_ranks):
    losses, grads = one_step(two_ranks / "shards", single("cpu"))
    for rank in range(2):
        found = torch.load(two_ranks / f"{rank}.pt", weights_only=True)
        assert found["losses"]["loss"] == pytest.approx(losses.loss, rel=1e-6)
        assert found["losses"]["supervised"] == losses.supervised
        assert found["losses"]["tokens"] == losses.tokens
        assert found["losses"]["by_modality"] == pytest.approx(losses.by_modality, rel=1e-6)
        for name, gradient in grads.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_run_of_two_ranks_follows_that_of_one_and_goes_on_with_one(two_ranks):
    shards, run = two_ranks / "shards", two_ranks / "run"
    loop.train(config_for(1), shards, two_ranks / "single", single("cpu"))
    ours, theirs = read_metrics(run), read_metrics(two_ranks / "single")
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-2)
    names = sorted(path.name for path in (run / "checkpoints/step-00000006").iterdir())
    assert names == ["manifest.json", "model.pt", "optimizer.pt", "rng-00000.pt", "rng-00001.pt"]
    assert loop.train(config_for(1, max_steps=7), shards, run, single("cpu")) == 7


def test_one_bad_rank_stops_all_before_the_update(two_ranks):
    for rank in range(2):
        same, message = (two_ranks / f"{rank}.txt").read_text().split(" ", 1)
        assert same == "True"
        assert "step 1 gave a loss of nan" in message


def test_a_world_of_one_needs_no_process_group():
    ranks = single("cpu")
    assert not dist.is_initialized()
    assert ranks.sums([1, 2.5]) == [1.0, 2.5]
    assert ranks.from_main(7) == 7
    assert ranks.all(True)
    assert not ranks.all(False)
    model = torch.nn.Linear(2, 2)
    assert ranks.wrap(model) is model
