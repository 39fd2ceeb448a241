"""Every benchmark can be imported: what it measures has not been renamed under it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

NAMES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
NEEDS = {"stability_plots": "matplotlib", "stability_report": "matplotlib"}  # no dependency of koe


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert importlib.import_module(f"benchmarks.{name}").__doc__
