import pytest
import torch
from torch.nn import functional

from tests.training.helpers import small_config, small_model
from training.data.batches import IGNORED
from training.model.loss import next_token_losses

EXACT = {"compute_dtype": torch.float32}


def case(seed=0, rows=2, tokens=37, width=16, vocabulary=96):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, tokens, width, generator=generator)
    head = torch.randn(vocabulary, width, generator=generator)
    labels = torch.randint(vocabulary, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.3] = IGNORED
    return hidden.requires_grad_(), head.requires_grad_(), labels


def oracle(hidden, head, labels, z_loss=0.0):
    """In FP64, by the definition: total, cross-entropies [rows, tokens - 1], largest logit."""
    logits = hidden[:, :-1].double() @ head.double().T
    targets, supervised = labels[:, 1:], labels[:, 1:] != IGNORED
    normalisers = logits.logsumexp(2)
    wanted = logits.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    losses = (normalisers - wanted) * supervised
    total = losses.sum() + z_loss * normalisers[supervised].square().sum()
    return total, losses, logits[supervised].max()


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize(
    ("kernel", "chunk_tokens"),
    [("chunked", 1), ("chunked", 7), ("chunked", 37), ("chunked", 1000), ("plain", 7)],
)
def test_values_and_gradients_equal_the_definition(kernel, chunk_tokens, z_loss):
    hidden, head, labels = case()
    total, losses, largest = oracle(hidden, head, labels, z_loss)
    wanted = torch.autograd.grad(0.25 * total, (hidden, head))
    found = next_token_losses(
        hidden, head, labels, chunk_tokens=chunk_tokens, z_loss=z_loss, kernel=kernel, **EXACT
    )
    torch.testing.assert_close(found.token_losses[:, 1:], losses.float())
    assert not found.token_losses[:, 0].any()
    assert not found.token_losses[labels == IGNORED].any()
    torch.testing.assert_close(found.total, total.float())
    torch.testing.assert_close(found.largest_logit, largest.float())
    assert not found.token_losses.requires_grad
    assert not found.largest_logit.requires_grad
    gradients = torch.autograd.grad(0.25 * found.total, (hidden, head))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_z_loss_is_no_part_of_the_token_losses():
    hidden, head, labels = case()
    without, with_z = (
        next_token_losses(hidden, head, labels, chunk_tokens=16, z_loss=z_loss, **EXACT)
        for z_loss in (0.0, 0.3)
    )
    assert torch.equal(without.token_losses, with_z.token_losses)
    assert with_z.total > without.total + 1


@pytest.mark.parametrize("kernel", ["chunked", "plain"])
def test_the_largest_logit_is_that_of_supervised_positions(kernel):
    hidden, head, labels = case()
    labels[:, 10] = IGNORED
    labels[1, 20] = 3
    with torch.no_grad():
        hidden[:, 9] *= 100  # predicts the ignored label at 10
        hidden[1, 36] *= 100  # predicts nothing: the row ends
        hidden[1, 19] *= 10
    expected = (head @ hidden[1, 19]).max()
    settings = {"chunk_tokens": 16, "kernel": kernel, **EXACT}
    found = next_token_losses(hidden, head, labels, **settings)
    torch.testing.assert_close(found.largest_logit, expected.detach())
    nothing = next_token_losses(hidden, head, torch.full_like(labels, IGNORED), **settings)
    assert nothing.largest_logit == -torch.inf
    assert nothing.total == 0
    assert not any(part.any() for part in torch.autograd.grad(nothing.total, (hidden, head)))


def test_the_heads_gradient_adds_up_in_fp32_though_the_head_is_bf16():
    """2048 chunks that push the same way: a BF16 sum stops growing when a term is below 2^-9."""
    tokens, width, vocabulary = 2048, 8, 16
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(1, tokens, width, generator=generator).bfloat16().requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).bfloat16().requires_grad_()
    labels = torch.full((1, tokens), 5)
    (exact,) = torch.autograd.grad(oracle(hidden, head, labels)[0], head)
    found = next_token_losses(hidden, head, labels, chunk_tokens=1, compute_dtype=torch.bfloat16)
    (ours,) = torch.autograd.grad(found.total, head)
    assert ours.dtype == torch.bfloat16
    naive = torch.zeros_like(head)
    probabilities = (hidden[0] @ head.T).float().softmax(1).detach()
    slopes = (probabilities - functional.one_hot(labels[0], vocabulary)).bfloat16()
    slopes[-1] = 0  # predicts nothing
    for slope, state in zip(slopes, hidden[0].detach(), strict=True):
        naive += slope.unsqueeze(1) * state.unsqueeze(0)

    def error(gradient):
        return ((gradient.double() - exact.double()).norm() / exact.double().norm()).item()

    assert error(naive) > 0.05, "the case must tell the two apart"
    assert error(ours) < 2**-8


@pytest.mark.parametrize("kernel", ["chunked", "plain"])
def test_bf16_hidden_states_and_head_get_bf16_gradients_near_the_exact_ones(kernel):
    hidden, head, labels = case(width=64)
    hidden, head = (t.detach().bfloat16().requires_grad_() for t in (hidden, head))
    total, losses, _ = oracle(hidden, head, labels, 1e-3)
    wanted = torch.autograd.grad(total, (hidden, head))
    found = next_token_losses(
        hidden, head, labels, chunk_tokens=16, compute_dtype=torch.bfloat16, z_loss=1e-3, kernel=kernel
    )  # fmt: skip
    assert found.token_losses.dtype == found.total.dtype == torch.float32
    # The operands are BF16 numbers already, so nothing but the gradients' own rounding is lost.
    torch.testing.assert_close(found.token_losses[:, 1:], losses.float(), atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found.total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs.double(), atol=0.05, rtol=2**-7)


def test_bf16_products_of_fp32_tensors_stay_near_fp32():
    hidden, head, labels = case(width=64)
    expected = oracle(hidden, head, labels)[0]
    wanted = torch.autograd.grad(expected, (hidden, head))
    total = next_token_losses(
        hidden, head, labels, chunk_tokens=16, compute_dtype=torch.bfloat16
    ).total
    assert total != expected.float(), "BF16 was not used"
    torch.testing.assert_close(total, expected.float(), rtol=2e-2, atol=0)
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_autocast_around_it_changes_nothing():
    hidden, head, labels = case()
    settings = {"chunk_tokens": 16, **EXACT}
    exact = next_token_losses(hidden, head, labels, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = next_token_losses(hidden, head, labels, **settings)
    assert torch.equal(exact.total, inside.total)


def test_huge_logits_give_a_finite_loss():
    hidden, head, labels = case()
    found = next_token_losses(1e3 * hidden, head, labels, chunk_tokens=16, **EXACT)
    torch.testing.assert_close(found.total, oracle(1e3 * hidden, head, labels)[0].float())
    (gradient,) = torch.autograd.grad(found.total, head)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kernel", ["chunked", "plain"])
def test_a_state_that_is_not_finite_is_not_hidden(kernel):
    hidden, head, labels = case()
    labels[0, 6] = 1
    with torch.no_grad():
        hidden[0, 5, 0] = torch.nan
    found = next_token_losses(hidden, head, labels, chunk_tokens=16, kernel=kernel, **EXACT)
    assert found.total.isnan()
    assert found.largest_logit.isnan()
    assert found.token_losses.isnan().sum() == 1


@pytest.mark.parametrize("kernel", ["chunked", "plain"])
def test_without_gradients_none_are_kept(kernel):
    hidden, head, labels = case()
    settings = {"chunk_tokens": 16, "kernel": kernel, **EXACT}
    expected = next_token_losses(hidden, head, labels, **settings)
    with torch.no_grad():
        found = next_token_losses(hidden, head, labels, **settings)
    assert not found.total.requires_grad
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_second_backward_is_refused():
    hidden, head, labels = case()
    total = next_token_losses(hidden, head, labels, chunk_tokens=16, **EXACT).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only be differentiated once"):
        total.backward()


def test_auto_is_chunked_and_unknown_kernels_are_refused():
    for wanted, kernel in {"auto": "chunked", "chunked": "chunked", "plain": "plain"}.items():
        assert small_model(loss_kernel=wanted).loss_kernel == kernel
    with pytest.raises(ValueError, match=r"loss_kernel\n.*'auto', 'chunked' or 'plain'"):
        small_config(loss_kernel="liger")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_agrees_with_the_definition(dtype):
    hidden, head, labels = case(width=64)
    hidden, head = (t.detach().cuda().to(dtype).requires_grad_() for t in (hidden, head))
    labels = labels.cuda()
    total, losses, largest = oracle(hidden, head, labels, 1e-3)
    wanted = torch.autograd.grad(total, (hidden, head))
    found = next_token_losses(
        hidden, head, labels, chunk_tokens=16, compute_dtype=torch.bfloat16, z_loss=1e-3
    )
    exact = dtype == torch.bfloat16  # FP32 operands are rounded before the products
    near = {"atol": 1e-3, "rtol": 1e-4} if exact else {"atol": 0.5, "rtol": 0.05}
    torch.testing.assert_close(found.token_losses[:, 1:], losses.float(), **near)
    torch.testing.assert_close(found.largest_logit, largest.float(), **near)
    for ours, theirs in zip(torch.autograd.grad(found.total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == dtype
        similarity = functional.cosine_similarity(
            ours.double().flatten(), theirs.double().flatten(), 0
        )
        assert similarity > 0.999
