"""A tokenizer is known by what it holds, wherever its folder lies."""

from types import SimpleNamespace

import pytest

from pipeline.config.load import load_config
from pipeline.jobs.assembly import Assembly
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
