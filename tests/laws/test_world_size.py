"""Law: the number of ranks changes neither the rows of a step, nor its loss and gradients."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.training.helpers import gradients, small_config, small_model, small_shards
from training import loop
from training.data import ShardRows, StepLoader
from training.distributed import Ranks, from_process_group, single
from training.metrics import read_metrics

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
    dist.destroy_process_group()


def poisoned(rank: int, world: int, port: int, shards: Path, out: Path) -> None:
    """Make the loss NaN on the last rank only; every rank must stop, none may update."""
    ranks = join(rank, world, port)
    build, seen = loop.build_optimizer, {}

    def spy(model, config):
        seen["model"] = model
        if rank == world - 1:
            model.llama.model.norm.register_forward_hook(lambda *a: a[2] * float("nan"))
        return build(model, config)

    loop.build_optimizer = spy
    before = small_model().llama.state_dict()
    message = "no error"
    try:
        loop.train(config_for(world), shards, out / "run", ranks)
    except loop.NotFinite as error:
        message = str(error)
    after = seen["model"].llama.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    (out / f"{rank}.txt").write_text(f"{same} {message}")
    dist.destroy_process_group()


def spawn(function, world: int, *arguments) -> None:
    mp.spawn(function, args=(world, free_port(), *arguments), nprocs=world, join=True)


@pytest.mark.parametrize("world", [2])
def test_loss_and_gradients_are_those_of_one_rank(tmp_path, world):
    shards = small_shards(tmp_path / "shards", num_rows=20)
    losses, grads = one_step(shards, single("cpu"))
    loop.train(config_for(1), shards, tmp_path / "single", single("cpu"))
    spawn(in_world, world, shards, tmp_path)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["losses"]["loss"] == pytest.approx(losses.loss, rel=1e-6)
        assert found["losses"]["supervised"] == losses.supervised
        assert found["losses"]["tokens"] == losses.tokens
        assert found["losses"]["by_modality"] == pytest.approx(losses.by_modality, rel=1e-6)
        for name, gradient in grads.items():
            torch.testing.assert_close(
                found["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name
            )
    ours, theirs = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "single")
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-2)
    names = sorted(path.name for path in (tmp_path / "run/checkpoints/step-00000006").iterdir())
    assert names == ["manifest.json", "model.pt", "optimizer.pt", "rng-00000.pt", "rng-00001.pt"]
    # Another world size goes on where this one stopped.
    more = config_for(1, max_steps=7)
    assert loop.train(more, shards, tmp_path / "run", single("cpu")) == 7


def test_one_bad_rank_stops_all_before_the_update(tmp_path):
    shards = small_shards(tmp_path / "shards", num_rows=20)
    spawn(poisoned, 2, shards, tmp_path)
    for rank in range(2):
        same, message = (tmp_path / f"{rank}.txt").read_text().split(" ", 1)
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
