"""A machine without a C compiler, for the engines that need one, and the Llama 3 tokenizer."""

from __future__ import annotations

import pytest

from stages.native.compiler import load_library
from stages.snac.kernels import native_kernels
from stages.text.tokenizer import load_tokenizer, text_tokenizer


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """A machine without a compiler, and a process that has not compiled yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    caches = (load_library, native_kernels)
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
