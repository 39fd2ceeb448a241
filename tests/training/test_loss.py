import pytest
import torch
from torch.nn import functional

from training.data import IGNORED
from training.loss import next_token_losses


def case(seed=0, rows=2, tokens=37, width=16, vocabulary=96):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, tokens, width, generator=generator)
    head = torch.randn(vocabulary, width, generator=generator)
    labels = torch.randint(vocabulary, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.3] = IGNORED
    return hidden.requires_grad_(), head.requires_grad_(), labels


def plain(hidden, head, labels):
    logits = hidden[:, :-1] @ head.T
    return functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape[0], -1)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 1000])
def test_value_and_gradients_equal_plain_cross_entropy(chunk_tokens):
    hidden, head, labels = case()
    expected = plain(hidden, head, labels)
    wanted = torch.autograd.grad(0.25 * expected.sum(), (hidden, head))
    total, losses = next_token_losses(
        hidden, head, labels, chunk_tokens=chunk_tokens, compute_dtype=torch.float32
    )
    found = torch.autograd.grad(0.25 * total, (hidden, head))
    torch.testing.assert_close(losses[:, 1:], expected)
    assert not losses[:, 0].any()
    assert not losses[labels == IGNORED].any()
    torch.testing.assert_close(total, expected.sum())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bf16_products_stay_near_fp32():
    hidden, head, labels = case(width=64)
    expected = plain(hidden, head, labels).sum()
    wanted = torch.autograd.grad(expected, (hidden, head))
    total, _ = next_token_losses(
        hidden, head, labels, chunk_tokens=16, compute_dtype=torch.bfloat16
    )
    torch.testing.assert_close(total, expected, rtol=2e-2, atol=0)
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_huge_logits_give_a_finite_loss():
    hidden, head, labels = case()
    total, _ = next_token_losses(
        1e3 * hidden, head, labels, chunk_tokens=16, compute_dtype=torch.float32
    )
    torch.testing.assert_close(total, plain(1e3 * hidden, head, labels).sum())


def test_without_gradients_none_are_kept():
    hidden, head, labels = case()
    with torch.no_grad():
        total, _ = next_token_losses(
            hidden, head, labels, chunk_tokens=16, compute_dtype=torch.float32
        )
    assert not total.requires_grad


def test_a_second_backward_is_refused():
    hidden, head, labels = case()
    total, _ = next_token_losses(hidden, head, labels, chunk_tokens=16, compute_dtype=torch.float32)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        total.backward()
