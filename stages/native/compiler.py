"""Compiles C sources for the CPU that runs them, in the process that loads them."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

_COMPILERS = ("cc", "gcc", "clang")
# Every process compiles anew, in 0.3 s: no cache to invalidate, and no code built for another CPU.
# Vectors wider than the CPU's registers never leave a file, so that their calling convention,
# which GCC warns about, does not matter.
_FLAGS = ("-O3", "-fPIC", "-shared", "-Wno-psabi")
# CPUs of one instruction set get the same code; -march=native would tell them apart.
_ARCHITECTURES = {
    "avx512": ("-march=skylake-avx512", "-mtune=generic"),
    "avx2": ("-march=haswell", "-mtune=generic"),
}


class Unavailable(Exception):
    """Compiled code cannot be used here; the text says why."""


def instruction_set() -> str:
    """Name what torch and the compiled code compute with here: `avx512`, `avx2`, or the machine.

    Sums are taken in another order by another instruction set, so it decides their last bits.
    """
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in _ARCHITECTURES else platform.machine().lower()


@cache
def load_library(source: Path) -> ctypes.CDLL:
    """Compile a C file and load it; once per process.

    Raises: Unavailable without a compiler (`CC`, cc, gcc or clang), or when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="koe-native-") as folder:
        path = Path(folder) / f"{source.stem}.so"
        architecture = _ARCHITECTURES.get(instruction_set(), ("-march=native",))
        command = [*_compiler(), *_FLAGS, *architecture, "-o", str(path), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                first = " ".join(done.stderr.strip().splitlines()[:1])
                raise Unavailable(f"`{shlex.join(command)}` failed: {first}")
            return ctypes.CDLL(str(path))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(str(error)) from error


def _compiler() -> list[str]:
    for command in (shlex.split(os.environ.get("CC", "")), *([name] for name in _COMPILERS)):
        if command and shutil.which(command[0]):
            return command
    raise Unavailable(f"no C compiler was found: neither $CC nor {', '.join(_COMPILERS)}")
