"""Loads the C of the stages for the CPU that runs it: built at installation, or compiled now."""

from __future__ import annotations

import ctypes
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.native.build import BUILT, TARGETS, Unavailable, compile_source, library_name

Argument = int | Tensor | np.ndarray | Sequence[np.ndarray]
Function = Callable[..., int]  # of `Argument`s


def instruction_set() -> str:
    """Name what torch and onnxruntime compute with here: `avx512`, `avx2`, or the machine.

    Their sums are taken in another order by another instruction set, so it decides their last bits.
    That of the compiled code does not.
    """
    found = torch.backends.cpu.get_cpu_capability().lower()
    known = TARGETS.get(platform.machine(), ())
    return found if found in known else platform.machine().lower()


def target() -> str:
    """Name the instruction set that compiled code uses here.

    Raises: Unavailable on a CPU for which there is none.
    """
    machine, found = platform.machine(), torch.cpu.get_capabilities()
    if machine == "aarch64":
        return "neon"
    if machine == "x86_64" and found.get("avx2") and found.get("fma3"):
        wide = all(found.get(f"avx512_{part}") for part in ("f", "bw", "cd", "dq", "vl"))
        return "avx512" if wide else "avx2"
    raise Unavailable(f"this CPU ({machine}) has neither AVX2 with FMA nor NEON")


def bf16_target() -> str:
    """Name the instruction set that compiled code uses here to multiply in BF16.

    Raises: Unavailable on a CPU that has none, or for which there is none.
    """
    if target() == "avx512" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "avx512bf16"
    raise Unavailable(f"this CPU ({platform.machine()}) has no AVX-512 BF16")


class Library:
    """C functions of pointers and sizes, called with arrays, tensors and ints."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._loaded = loaded

    def __getattr__(self, name: str) -> Function:
        """Return a function, which takes the memory of arrays as it is: the caller lays it out."""
        found = getattr(self._loaded, name)
        found.restype = ctypes.c_ssize_t

        def call(*values: Argument) -> int:
            return found(*map(_argument, values))

        setattr(self, name, call)
        return call


def load_library(source: Path) -> Library:
    """Load what a C file was compiled to for this CPU, or compile it; once per process.

    Raises: Unavailable on another kind of CPU, or where it has to be compiled without a compiler.
    """
    return load_target(source, target())


@cache
def load_target(source: Path, target: str) -> Library:
    """Load what a C file is compiled to for an instruction set; once per process."""
    path = BUILT / library_name(source, target)
    if path.exists():
        try:
            return Library(ctypes.CDLL(str(path)))
        except OSError:
            pass  # built on a machine with another C library: compiled here instead
    with tempfile.TemporaryDirectory(prefix="koe-native-") as folder:
        made = compile_source(source, target, Path(folder) / path.name)
        try:
            return Library(ctypes.CDLL(str(made)))
        except OSError as error:
            raise Unavailable(str(error)) from error


def _argument(value: Argument) -> ctypes.c_void_p | ctypes.c_ssize_t | ctypes.Array:
    if isinstance(value, int):
        return ctypes.c_ssize_t(value)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return (ctypes.c_void_p * len(value))(*(item.ctypes.data for item in value))
