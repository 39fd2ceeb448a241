"""Compiles the C of the stages where koe is installed, if there is a compiler; see pyproject.toml."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from stages.native.build import BUILT, Unavailable, build_all


class BuildWithLibraries(build_py):
    """Adds a library per C file and instruction set, beside the sources where they stay in use."""

    def run(self) -> None:
        super().run()
        inside = BUILT.relative_to(Path(__file__).resolve().parent)
        folder = BUILT if self.editable_mode else Path(self.build_lib, inside)
        try:
            for path in build_all(folder):
                self.announce(f"compiled {path.name}", 2)
        except Unavailable as error:
            self.warn(
                f"not all of koe's C is compiled now; each process tries the rest again: {error}"
            )


class WheelOfThisPlatform(bdist_wheel):
    """A wheel that holds libraries fits this kind of machine alone; one without fits any."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if any(Path(self.get_finalized_command("build_py").build_lib).rglob("*.so")):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return python, abi, platform


setup(cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": WheelOfThisPlatform})
