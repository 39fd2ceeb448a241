import numpy as np
import pytest
import torch

from koe.errors import ContractError
from koe.vocabulary import (
    CODEBOOK_SIZE,
    FIRST_AUDIO,
    NUM_BASE,
    NUM_EMBEDDINGS,
    SLOTS,
    audio_ids,
    flatten_codes,
)
from training.model.embeddings import fill_new_rows

ROWS, WIDTH = 156_992, 8  # as the trained model's, and as narrow as the statistics allow


def embedding(rows: int = ROWS, old: int = NUM_BASE, width: int = WIDTH) -> torch.Tensor:
    """Old rows of unequal, correlated columns around a mean; new rows of NaN, to be filled."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(width, width, generator=generator) * torch.linspace(0.005, 0.05, width)
    weight = torch.full((rows, width), float("nan"))
    weight[:old] = torch.randn(old, width, generator=generator) @ mixing + 0.03
    return weight


def filled(init: str, seed: int = 0, *, first: int = NUM_BASE, **shape: int) -> torch.Tensor:
    weight = embedding(old=first, **shape)
    fill_new_rows(weight, first, init, seed)
    return weight


def audio_rows(weight: torch.Tensor) -> torch.Tensor:
    """[slots, codes, width]"""
    return weight[FIRST_AUDIO:NUM_EMBEDDINGS].view(SLOTS, CODEBOOK_SIZE, -1)


def covariance(rows: torch.Tensor) -> torch.Tensor:
    return torch.cov(rows.double().T, correction=0)


def assert_same_covariance(found: torch.Tensor, expected: torch.Tensor, num_rows: int) -> None:
    """Compare within five standard errors of a covariance estimated from so many normal rows."""
    variance = expected.diagonal()
    error = ((expected.square() + variance[:, None] * variance) / num_rows).sqrt()
    assert ((found - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("init", ["mean_cov", "per_codebook", "small_random"])
@pytest.mark.parametrize("first", [NUM_BASE, 49_152, FIRST_AUDIO + 5000])
def test_every_new_row_is_filled_and_the_old_stay(init, first):
    weight = filled(init, first=first)
    assert torch.equal(weight[:first], embedding(old=first)[:first])
    assert weight.isfinite().all()
    assert len(weight[first:].unique(dim=0)) == ROWS - first


@pytest.mark.parametrize("init", ["mean_cov", "per_codebook", "small_random"])
def test_rows_depend_on_the_seed_alone(init):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = filled(init, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(filled(init, 3), first)
    assert not torch.isclose(filled(init, 4)[NUM_BASE:], first[NUM_BASE:]).all(1).any()


def test_mean_cov_has_the_mean_and_the_covariance_of_the_old_rows():
    weight = filled("mean_cov")
    old, new = weight[:NUM_BASE], weight[NUM_BASE:]
    expected = covariance(old)
    error = (expected.diagonal() / len(new)).sqrt()
    assert ((new.double().mean(0) - old.double().mean(0)).abs() < 5 * error).all()
    assert_same_covariance(covariance(new), expected, len(new))


@pytest.mark.parametrize("init", ["mean_cov", "per_codebook"])
def test_new_rows_are_as_long_as_old_ones(init):
    # Width 64: the seven slots' draws are few, so those of a narrow model may be long or short.
    weight = filled(init, width=64)
    old, new = weight[:NUM_BASE].norm(dim=1), weight[NUM_BASE:].norm(dim=1)
    assert new.mean() == pytest.approx(old.mean().item(), rel=0.15)
    assert new.std() == pytest.approx(old.std().item(), rel=0.5)


def test_small_random_has_a_deviation_of_0_02():
    new = filled("small_random")[NUM_BASE:]
    assert new.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(new.mean().item()) < 0.001


def test_a_code_is_the_same_in_every_slot_of_its_codebook_but_for_the_slot():
    weight = filled("per_codebook")
    rows = audio_rows(weight)
    of_code = (rows - rows.mean(1, keepdim=True)).flatten(0, 1)
    for code in (0, 77, 4095):
        frame = flatten_codes([np.full(n, code) for n in (1, 2, 4)])
        c0, c1, c2, c2b, c1b, c2c, c2d = (of_code[i - FIRST_AUDIO] for i in audio_ids(frame))
        torch.testing.assert_close(c1, c1b, atol=1e-6, rtol=0)
        for other in (c2b, c2c, c2d):
            torch.testing.assert_close(c2, other, atol=1e-6, rtol=0)
        assert (c0 - c1).norm() > 1e-3
        assert (c1 - c2).norm() > 1e-3
        assert (c0 - c2).norm() > 1e-3


def test_slot_and_code_have_half_of_the_old_covariance_each_and_are_independent():
    half = covariance(embedding()[:NUM_BASE]) / 2
    offsets = []
    for seed in range(12):
        weight = filled("per_codebook", seed)
        rows = audio_rows(weight).double()
        means = rows.mean(1)
        offsets.append(means - weight[:NUM_BASE].double().mean(0))
        if seed == 0:
            # Codebooks 0, 1 and 2 in slots 0, 1 and 2: codes apart have nothing in common.
            parts = [rows[slot] - means[slot] for slot in range(3)]
            for part in parts:
                assert_same_covariance(covariance(part), half, CODEBOOK_SIZE)
            whitened = torch.cat(parts, dim=1) / torch.cat([p.std(0) for p in parts])
            across = covariance(whitened)[:WIDTH, WIDTH:]
            assert across.abs().max() < 6 / CODEBOOK_SIZE**0.5
    slots = torch.stack(offsets)  # [seeds, slots, width]
    assert_same_covariance(covariance(slots.flatten(0, 1)), half, 12 * SLOTS)
    lengths = half.diagonal().sqrt()
    between = torch.einsum("kaw,kbw->ab", slots / lengths, slots / lengths) / (12 * WIDTH)
    between -= torch.diag(between.diagonal())
    # Columns are correlated, so the 12 x 8 products count as fewer.
    assert between.abs().max() < 5 / 12**0.5


def test_slots_are_told_apart_from_the_start():
    weight = filled("per_codebook", width=64)
    rows = audio_rows(weight)
    means = rows.mean(1)
    nearest = torch.cdist(rows.flatten(0, 1), means).argmin(1).view(SLOTS, CODEBOOK_SIZE)
    right = nearest == torch.arange(SLOTS)[:, None]
    assert right.float().mean() > 0.95


def test_rows_that_are_no_audio_are_as_in_mean_cov():
    by_codebook, plain = filled("per_codebook"), filled("mean_cov")
    assert torch.equal(by_codebook[:FIRST_AUDIO], plain[:FIRST_AUDIO])
    assert torch.equal(by_codebook[NUM_EMBEDDINGS:], plain[NUM_EMBEDDINGS:])
    audio = slice(FIRST_AUDIO, NUM_EMBEDDINGS)
    assert not torch.isclose(by_codebook[audio], plain[audio]).all(1).any()


@pytest.mark.parametrize("old", [1, 5])
def test_fewer_old_rows_than_columns_span_the_new_ones(old):
    weight = filled("mean_cov", rows=2000, first=old, width=16).double()
    centred = weight - weight[:old].mean(0)
    span = torch.linalg.svd(centred[:old], full_matrices=False).Vh[: old - 1]
    outside = centred - centred @ span.T @ span
    assert outside.norm(dim=1).max() < 1e-3 * weight.norm(dim=1).max()
    found, expected = (covariance(rows @ span.T) for rows in (centred[old:], centred[:old]))
    assert_same_covariance(found, expected, 2000 - old)


def test_a_parameter_that_needs_gradients_is_filled_in_place():
    weight = torch.nn.Parameter(embedding(300, 200))
    fill_new_rows(weight, 200, "mean_cov", 0)
    assert weight.isfinite().all()
    assert weight.is_leaf
    assert weight.requires_grad


def test_nothing_new_changes_nothing():
    weight = embedding(200, 200)
    fill_new_rows(weight, 200, "per_codebook", 0)
    assert torch.equal(weight, embedding(200, 200))


@pytest.mark.parametrize(("first", "init"), [(0, "mean_cov"), (201, "mean_cov"), (100, "median")])
def test_what_cannot_be_filled_is_refused(first, init):
    with pytest.raises(ContractError):
        fill_new_rows(embedding(200, 200), first, init, 0)
