"""Training on object storage: the same weights as on a local disk."""

import pytest

from tests.training.helpers import (
    VOCABULARY,
    assert_same_weights,
    one_thread,
    saved_tensors,
    small_config,
)
from tests.training.remote import cached_bytes, gigabytes, remote_shards
from training import loop
from training.config import EvaluationConfig
from training.model.distributed import single

__all__ = ["one_thread"]  # applies to every test here

RANKS = single("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KOE_CACHE", str(folder))
    return folder


def shards_at(s3, tmp_path, **changes):
    settings = {"vocabulary": VOCABULARY, "num_rows": 24, "num_shards": 6, **changes}
    return remote_shards(tmp_path / "shards", s3.make_bucket("run") + "/shards", **settings)


def test_shards_on_s3_give_the_weights_of_local_ones(s3, tmp_path, cache):
    folder, url = shards_at(s3, tmp_path)
    evaluation = EvaluationConfig(every_steps=2, prompts=0)
    config = small_config(evaluation=evaluation, shard_cache_gigabytes=gigabytes(folder, 6))
    loop.train(config, folder, tmp_path / "local", RANKS)
    s3.fail(share=0.1)
    try:
        loop.train(config, url, tmp_path / "remote", RANKS)
    finally:
        s3.fail()
    assert_same_weights(
        *(saved_tensors(tmp_path / name, 6, config) for name in ("local", "remote"))
    )
    assert 0 < cached_bytes(cache) <= config.shard_cache_gigabytes * 1e9
