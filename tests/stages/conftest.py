"""A machine without a C compiler, for the engines that need one, and the Llama 3 tokenizer."""

from __future__ import annotations

import pytest

from stages.native.compiler import load_target
from stages.snac.compiled import native_kernels
from stages.text.tokenizer import load_tokenizer, text_tokenizer


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A machine without a compiler, and a process that has not compiled yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("stages.native.compiler.BUILT", tmp_path / "built")
    caches = (load_target, native_kernels)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="module")
def llama():
    return load_tokenizer("llama-models")


@pytest.fixture(scope="module")
def tokenizer(llama):
    return text_tokenizer(llama)
