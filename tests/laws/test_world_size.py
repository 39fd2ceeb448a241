"""Law: the number of ranks changes neither the rows of a step, nor its loss and gradients, nor
what the guard makes of it. 64 sequences per step: 8 ranks x 4 rows x 2 micro-batches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from tests.training.helpers import one_thread, saved_tensors, small_config, small_shards
from tests.training.ranks import run_ranks
from training import loop
from training.config import GuardConfig, TrainConfig
from training.metrics import read_events, read_metrics
from training.model.distributed import Ranks, single
from training.observe import Observer
from training.run import open_run
from training.step import accumulate_gradients

__all__ = ["one_thread"]  # applies to every test here

SEQUENCES = 64
ROWS = 4  # of a micro-batch
STEPS = 3


def config_for(world: int, **changes) -> TrainConfig:
    settings = {
        "workers": world,
        "micro_batch_rows": ROWS,
        "accumulation_steps": SEQUENCES // ROWS // world,
        "max_steps": STEPS,
        "checkpoint_every_steps": STEPS,
        "learning_rate": 1e-3,
    }
    return small_config(**{**settings, "allow": [], **changes})


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def one_step(shards: Path, out: Path, ranks: Ranks, **changes) -> dict:
    """Take the second step's gradients."""
    with open_run(config_for(ranks.world, **changes), shards, out, ranks, None) as run:
        result = accumulate_gradients(run.model, run.loader.batches(1), ranks, "fp32", 2)
        grads = {
            name: whole(p.grad).clone()
            for name, p in run.plain_model.named_parameters()
            if p.grad is not None
        }
    found = asdict(result)
    del found["token_losses"]
    return found | {"gradients": grads}


def in_world(ranks: Ranks, parallel: str, shards: Path, folder: Path) -> None:
    found = one_step(shards, folder / "one", ranks, parallel=parallel)
    torch.save(found, folder / f"{ranks.rank}.pt")
    config = config_for(ranks.world, parallel=parallel)
    loop.train(config, shards, folder / "run", ranks)
    for kind in ("nan", "spike"):
        torch.save(
            bad_step(kind, parallel, shards, folder, ranks), folder / f"{kind}{ranks.rank}.pt"
        )


def bad_step(kind: str, parallel: str, shards: Path, folder: Path, ranks: Ranks) -> dict:
    """Spoil the third step on the last rank only; return what every rank did and held."""
    config = config_for(ranks.world, parallel=parallel, guard=GuardConfig(max_gradient_norm=50))
    with open_run(config, shards, folder / kind, ranks, None) as run:
        observer = Observer(run)
        observer.record_step(loop.take_step(run))
        before = held(run)
        norm = run.plain_model.model.norm

        def spoil(module: nn.Module, inputs, output: torch.Tensor) -> torch.Tensor:
            if ranks.rank < ranks.world - 1:
                return output
            # A huge gradient behind an ordinary loss, or a loss that is no number.
            return (
                output * float("nan")
                if kind == "nan"
                else output + 1e4 * (output - output.detach())
            )

        hook = norm.register_forward_hook(spoil)
        bad = loop.take_step(run)
        observer.record_step(bad)
        same = all(torch.equal(value, before[name]) for name, value in held(run).items())
        hook.remove()
        good = loop.take_step(run)
    return {
        "bad": bad.verdict.action.name,
        "reason": bad.verdict.reason,
        "same": same,
        "good": good.verdict.action.name,
    }


def held(run) -> dict[str, torch.Tensor]:
    """Copy this rank's weights and moments."""
    found = {name: whole(p).detach().clone() for name, p in run.plain_model.named_parameters()}
    for name, parameter in run.plain_model.named_parameters():
        for key, value in run.optimizer.state[parameter].items():
            found[f"{name}.{key}"] = whole(value).clone()
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(
        tmp_path_factory.mktemp("shards"), num_rows=160, row_tokens=48, num_documents=2
    )


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = one_step(shards, folder / "one", single("cpu"))
    loop.train(config_for(1), shards, folder / "run", single("cpu"))
    return folder, found


@pytest.fixture(scope="module", params=[(2, "ddp"), (2, "fsdp"), (8, "fsdp")], ids=str)
def together(request, shards, tmp_path_factory):
    world, parallel = request.param
    folder = tmp_path_factory.mktemp(f"{parallel}{world}")
    run_ranks(in_world, world, parallel, shards, folder)
    return world, parallel, folder


@pytest.mark.slow
@pytest.mark.law
def test_world_sizes_agree_on_a_step(together, alone):
    world, _, folder = together
    _, expected = alone
    for rank in range(world):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["supervised"] == expected["supervised"]
        assert found["tokens"] == expected["tokens"]
        assert found["largest_logit"] == pytest.approx(expected["largest_logit"], rel=1e-5)
        torch.testing.assert_close(found["sums"], expected["sums"], rtol=1e-5, atol=1e-5)
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.law
def test_world_sizes_agree_on_a_run(together, alone, shards):
    _, _, folder = together
    ours, theirs = read_metrics(folder / "run"), read_metrics(alone[0] / "run")
    assert len(ours) == STEPS
    for row, expected in zip(ours, theirs, strict=True):
        assert row["tokens"] == expected["tokens"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-3)
        assert row["loss_by_source"] == pytest.approx(expected["loss_by_source"], rel=1e-3)
    config = config_for(1, max_steps=STEPS + 1)
    found, wanted = (saved_tensors(out / "run", STEPS, config) for out in (folder, alone[0]))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=2e-5)
    assert loop.train(config, shards, folder / "run", single("cpu")) == STEPS + 1
    assert read_metrics(folder / "run")[-1]["data_step"] == STEPS + 1


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize(("kind", "reason"), [("nan", "loss is nan"), ("spike", "gradient norm")])
def test_one_bad_rank_makes_all_skip(together, kind, reason):
    world, _, folder = together
    for rank in range(world):
        found = torch.load(folder / f"{kind}{rank}.pt", weights_only=True)
        assert found["bad"] == "SKIP", found
        assert found["same"]
        assert found["reason"].startswith(reason)
        assert found["good"] == "ACCEPT", "the next batch is taken again"
    event = read_events(folder / kind)[-1]
    assert event["event"] == "skip"
    assert len(event["rows"]) == SEQUENCES
    assert sum(len(ids) for ids in event["document_ids"]) == 2 * SEQUENCES


def test_a_world_of_one_needs_no_process_group():
    ranks = single("cpu")
    assert not dist.is_initialized()
    assert ranks.sums([1, 2.5]) == [1.0, 2.5]
    assert ranks.from_main(7) == 7
    assert ranks.maximum(2.5) == 2.5
    assert ranks.gather_objects("a") == ["a"]
