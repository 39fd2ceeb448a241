import os
from functools import partial

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from koe.errors import ConfigError
from tests.training.llamas import local_of, loss_of, tiny_llama, whole
from tests.training.ranks import run_ranks
from training.model.distributed import (
    Ranks,
    choose_compile,
    from_torchrun,
    gradient_sync,
    parallelise,
    single,
    total_gradient_norm,
)

pytestmark = pytest.mark.slow

WORLD, MICRO_BATCHES = 2, 2
WRAPPERS = {"ddp": DistributedDataParallel, "fsdp": FSDPModule}
VARIANTS = {
    "ddp": ("ddp", "fp32", False),
    "fsdp": ("fsdp", "fp32", False),
    "fsdp recomputed": ("fsdp", "fp32", True),
    "fsdp bf16": ("fsdp", "bf16", False),
}


def spread(model, ranks, parallel="fsdp", precision="fp32", recompute=False, compile=False):
    return parallelise(
        model, ranks, parallel, precision, compile=compile, activation_checkpointing=recompute
    )


def gradients_of(plain, model, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Take a step's gradients: of the sum of the losses of all micro-batches of all ranks."""
    for place in range(MICRO_BATCHES):
        with gradient_sync(model, place == MICRO_BATCHES - 1):
            number = ranks.rank * MICRO_BATCHES + place
            (loss_of(model, number) * ranks.world).backward()
    return {name: whole(p.grad) for name, p in plain.named_parameters()}


def first_micro_batch_stays_here(plain, model, ranks: Ranks) -> bool:
    """Tell whether a backward that is not the last leaves gradients as this rank has them."""
    with gradient_sync(model, last=False):
        loss_of(model, ranks.rank).backward()
    alone = tiny_llama()
    loss_of(alone, ranks.rank).backward()
    found = dict(plain.named_parameters())
    if isinstance(model, FSDPModule):  # its sharded gradients come into being with the reduction
        same = all(p.grad is None for p in found.values())
    else:
        same = all(torch.equal(found[n].grad, p.grad) for n, p in alone.named_parameters())
    return ranks.sums([same]) == [ranks.world]


def in_ranks(ranks: Ranks, folder) -> None:
    found: dict = {
        "largest": [ranks.maximum(ranks.rank), ranks.maximum(-ranks.rank)],
        "gathered": ranks.gather_objects({"rank": ranks.rank}),
    }
    for variant, (parallel, precision, recompute) in VARIANTS.items():
        plain = tiny_llama()
        names = [name for name, _ in plain.named_parameters()]
        model = spread(plain, ranks, parallel, precision, recompute)
        assert isinstance(model, WRAPPERS[parallel])
        assert [name for name, _ in plain.named_parameters()] == names
        assert plain.lm_head.weight is plain.model.embed_tokens.weight
        grads = gradients_of(plain, model, ranks)
        norm = total_gradient_norm(plain.parameters())
        clip_grads_with_norm_(plain.parameters(), float(norm) / 4, norm)
        clipped = total_gradient_norm(plain.parameters())
        if ranks.rank == 1:  # of FSDP's gradients rank 0 has no part of this one
            local_of(next(iter(plain.parameters())).grad)[-1, 0] = float("nan")
        spoilt = total_gradient_norm(plain.parameters())
        found[variant] = {"gradients": grads, "norms": [norm, clipped, spoilt]}
    for parallel in WRAPPERS:
        plain = tiny_llama()
        model = spread(plain, ranks, parallel)
        found[f"{parallel} waits"] = first_micro_batch_stays_here(plain, model, ranks)
    torch.save(found, folder / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    run_ranks(in_ranks, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def expected():
    """The gradients without any of the code under test."""
    model = tiny_llama()
    for number in range(WORLD * MICRO_BATCHES):
        loss_of(model, number).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    squares = sum(float(g.double().square().sum()) for g in grads.values())
    return grads, squares**0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_two_ranks_are_those_of_one(two_ranks, expected, variant):
    grads, norm = expected
    is_bf16 = "bf16" in variant
    for found in two_ranks:
        of_ranks = found[variant]["gradients"]
        assert of_ranks.keys() == grads.keys()
        for name, gradient in grads.items():
            assert of_ranks[name].dtype == torch.float32
            if is_bf16:
                error = (of_ranks[name] - gradient).norm() / gradient.norm()
                assert error < 0.03, name
            else:
                torch.testing.assert_close(of_ranks[name], gradient, rtol=1e-4, atol=1e-6)
        whole_norm, clipped, _ = found[variant]["norms"]
        assert whole_norm.item() == pytest.approx(norm, rel=1e-2 if is_bf16 else 1e-5)
        assert whole_norm.shape == ()
        assert whole_norm.dtype == torch.float32
        assert clipped.item() == pytest.approx(whole_norm.item() / 4, rel=1e-4)


@pytest.mark.parametrize("variant", ["fsdp", "fsdp bf16"])
def test_the_norm_is_the_same_on_all_ranks_and_shows_one_ranks_nan(two_ranks, variant):
    left, right = (found[variant]["norms"] for found in two_ranks)
    assert torch.equal(left[0], right[0])
    assert left[2].isnan()
    assert right[2].isnan()


@pytest.mark.parametrize("parallel", WRAPPERS)
def test_only_the_last_micro_batch_reduces(two_ranks, parallel):
    assert [found[f"{parallel} waits"] for found in two_ranks] == [True, True]


def test_ranks_find_the_largest_value_and_gather_in_order(two_ranks):
    assert [found["largest"] for found in two_ranks] == [[1, 0], [1, 0]]
    assert [found["gathered"] for found in two_ranks] == [[{"rank": 0}, {"rank": 1}], None]


def test_a_world_of_one_is_not_wrapped():
    ranks, plain = single("cpu"), tiny_llama()
    for parallel in WRAPPERS:
        assert spread(plain, ranks, parallel) is plain
    assert ranks.maximum(3) == 3
    assert ranks.gather_objects("a") == ["a"]
    for last in (False, True):
        with gradient_sync(plain, last):
            pass
    assert total_gradient_norm(plain.parameters()) == 0


def test_recomputation_keeps_gradients_and_runs_every_layer_twice():
    runs = {}
    for recompute in (False, True):
        model = spread(tiny_llama(), single("cpu"), recompute=recompute)
        calls = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss_of(model, 0).backward()
        runs[recompute] = len(calls), {n: p.grad for n, p in model.named_parameters()}
    assert (runs[False][0], runs[True][0]) == (1, 2)
    for name, gradient in runs[False][1].items():
        assert torch.equal(runs[True][1][name], gradient)


# Dynamo looks at every tensor's gradient and hides the warning, but not from a filter of errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_are_compiled_in_place(monkeypatch, recompute):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    # In place of Inductor, which takes a minute for a first graph.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = tiny_llama()
    model = spread(plain, single("cpu"), recompute=recompute, compile=True)
    assert model is plain
    loss, expected = loss_of(model, 0), loss_of(tiny_llama(), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert len(graphs) == 1  # no break, and both layers share it
    assert ("activation_checkpoint" in graphs[0].code) == recompute
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in tiny_llama().named_parameters()
    ]


def test_layers_are_compiled_on_cuda_unless_told_otherwise(monkeypatch):
    assert not choose_compile(None, "cpu")
    assert choose_compile(True, "cpu")
    assert not choose_compile(False, "cuda")
    monkeypatch.setattr("training.model.distributed.which", lambda name: name == "clang" and name)
    assert choose_compile(None, "cuda")
    monkeypatch.setattr("training.model.distributed.which", lambda name: None)
    assert not choose_compile(False, "cuda")
    with pytest.raises(ConfigError, match="Triton needs a C compiler") as caught:
        choose_compile(None, "cuda")
    assert "train.compile: false" in caught.value.remedy


def test_half_a_torchrun_environment_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert from_torchrun("cpu") == single("cpu")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(ConfigError, match="not WORLD_SIZE, LOCAL_RANK"):
        from_torchrun("cpu")
