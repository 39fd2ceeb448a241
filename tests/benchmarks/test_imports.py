"""Every benchmark can be imported: what it measures has not been renamed under it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

NAMES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
NEEDS = dict.fromkeys(  # no dependency of koe
    ("stability_plots", "stability_report", "stability_sizes_plots"), "matplotlib"
)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert importlib.import_module(f"benchmarks.{name}").__doc__
