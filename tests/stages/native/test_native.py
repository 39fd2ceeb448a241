"""Compiling: the library runs here, and what a compiler says is told."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from stages.native.build import (
    BF16_TARGETS,
    TARGETS,
    Unavailable,
    build_all,
    compile_source,
    library_name,
    sources,
)
from stages.native.compiler import load_library, load_target, target


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


def test_what_was_built_at_installation_needs_no_compiler(no_compiler, monkeypatch, tmp_path):
    source, built = _empty(tmp_path / "kernel.c"), tmp_path / "built"
    built.mkdir()
    monkeypatch.setenv("PATH", os.defpath)
    try:
        own = target()
        compile_source(source, own, built / library_name(source, own))
    except Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PATH", str(tmp_path))
    load_library(source)
    source.write_text("int changed;")  # after the installation: that library is no longer its own
    load_target.cache_clear()
    with pytest.raises(Unavailable, match="no C compiler was found"):
        load_library(source)


def test_every_source_is_built_for_every_instruction_set_of_this_machine(tmp_path):
    (tmp_path / "former.so").touch()
    try:
        names = {path.name for path in build_all(tmp_path)}
    except Unavailable as error:
        pytest.skip(str(error))
    in_bf16 = [source for source in sources() if source.stem.endswith("bf16")]
    of_all = len(TARGETS.get(platform.machine(), ())), len(BF16_TARGETS.get(platform.machine(), ()))
    assert len(names) == of_all[0] * (len(sources()) - len(in_bf16)) + of_all[1] * len(in_bf16)
    assert len(sources()) > 4
    assert len(in_bf16) == 1
    assert {path.name for path in tmp_path.iterdir()} == names
