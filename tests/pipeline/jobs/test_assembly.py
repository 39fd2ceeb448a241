"""What stages are built from: a tokenizer wherever it lies, and scores again where there is a GPU."""

from types import SimpleNamespace

import pytest

from pipeline.config.load import load_config
from pipeline.jobs.assembly import Assembly
from stages.dnsmos.engines import resolve_engine
from stages.encode import EncodeStage
from stages.score import ScoreStage
from tests.corpus import write_corpus

BEFORE = SimpleNamespace(content={"tokenizer": {"name": "/old/tokenizer", "sha256": "a" * 64}})


@pytest.mark.parametrize(
    ("name", "sha256", "expected"),
    [
        ("/new/tokenizer", "a" * 64, "/old/tokenizer"),
        ("/new/tokenizer", "b" * 64, "/new/tokenizer"),
        ("llama-models", "a" * 64, "llama-models"),
    ],
)
def test_a_tokenizer_whose_folder_moved_keeps_its_name_in_the_order(
    tmp_path, monkeypatch, name, sha256, expected
):
    config = load_config(write_corpus(tmp_path), [f"tokenize.tokenizer={name}"])
    monkeypatch.setattr(Assembly, "tokenizer", SimpleNamespace(sha256=sha256))
    content = Assembly(config).order(BEFORE).content  # pyright: ignore[reportArgumentType]
    assert content["tokenizer"] == {"name": expected, "sha256": sha256}
    assert Assembly(config).order().content["tokenizer"]["name"] == name


@pytest.mark.parametrize(("gpus", "provider"), [(0, "cpu"), (0.25, "cuda")])
def test_scores_are_settled_on_a_gpu_where_the_workers_that_settle_them_have_one(
    tmp_path, monkeypatch, gpus, provider
):
    changes = ["score.provider=cuda", "score.precision=bf16", "score.gpus_per_worker=0.5"]
    config = load_config(write_corpus(tmp_path), [*changes, f"encode.gpus_per_worker={gpus}"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    encode = Assembly(config).encode()
    assert isinstance(encode, EncodeStage)
    exact = encode.exact_scores
    assert isinstance(exact, ScoreStage)
    assert (exact.settings.provider, exact.settings.precision) == (provider, "fp32")
    assert exact.settings.engine == resolve_engine("auto", provider, "fp32")
    assert exact.ovrl_error == 0
