"""What is installed is what was tested, and the wheel holds what the packages read."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stages.native.build import BUILT

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("koe", "pipeline", "stages", "training")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def required() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(line) for group in (PROJECT["project"]["dependencies"], *extras) for line in group]  # fmt: skip


@pytest.mark.parametrize("requirement", required(), ids=lambda requirement: requirement.name)
def test_a_requirement_is_pinned_within_its_bounds(requirement):
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(pinned)


def test_what_the_wheel_asks_for_leaves_room():
    requirements = map(Requirement, PROJECT["project"]["dependencies"])
    assert not [str(r) for r in requirements if any(s.operator == "==" for s in r.specifier)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_goes_into_the_wheel(package):
    patterns = [p.split("/")[-1] for p in PROJECT["tool"]["setuptools"]["package-data"]["*"]]
    files = [path for path in (ROOT / package).rglob("*") if path.is_file()]
    left_out = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix not in (".py", ".pyc")
        and BUILT not in path.parents  # compiled where koe is installed, which adds them itself
        and not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert not left_out, "add their kind to [tool.setuptools.package-data]"
    assert (ROOT / package / "py.typed").exists()
