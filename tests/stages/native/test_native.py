"""Compiling: the library runs here, and what a compiler says is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.native.build import Unavailable
from stages.native.compiler import load_library


def test_a_source_is_compiled_and_loaded_once(tmp_path):
    source = tmp_path / "twice.c"
    source.write_text("#include <stddef.h>\nptrdiff_t twice(ptrdiff_t x) { return 2 * x; }")
    try:
        library = load_library(source)
    except Unavailable as error:
        pytest.skip(str(error))
    assert library.twice(21) == 42
    source.unlink()
    assert load_library(source) is library


def test_without_a_compiler_it_says_so(no_compiler, tmp_path):
    with pytest.raises(Unavailable, match="no C compiler was found"):
        load_library(_empty(tmp_path / "any.c"))


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'no such option' >&2; exit 1", "failed: no such option"),
        ("exit 0", "failed: it left no .*kernel-.*so"),
    ],
)
def test_a_compiler_that_fails_is_quoted(no_compiler, monkeypatch, tmp_path, script, why):
    compiler = tmp_path / "mycc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -O3")
    with pytest.raises(Unavailable, match=why):
        load_library(_empty(tmp_path / "kernel.c"))


def _empty(source: Path) -> Path:
    source.touch()
    return source
