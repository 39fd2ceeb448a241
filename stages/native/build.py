"""Compiles the C of the stages for each instruction set, at installation or when it is first used.

Only the standard library is imported, because `setup.py` runs this before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HEADERS = Path(__file__).parent
BUILT = HEADERS / "built"  # libraries compiled at installation
_STAGES = HEADERS.parent
_COMPILERS = ("cc", "gcc", "clang")
# Without -ffp-contract=off a compiler fuses products and sums as it likes, and each instruction set
# would round otherwise. Vectors wider than the CPU's registers never leave a file, so that their
# calling convention, which GCC warns about, does not matter.
_FLAGS = (
    *("-O3", "-fPIC", "-shared", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno"),
    *("-Wno-psabi", f"-I{HEADERS}"),
)
# What a machine may have, the widest first. CPUs of one instruction set run the same code.
TARGETS = {
    "x86_64": {
        "avx512": ("-march=skylake-avx512", "-mtune=generic"),
        "avx2": ("-march=haswell", "-mtune=generic"),
    },
    "aarch64": {"neon": ("-march=armv8-a",)},
}
# Instruction sets that multiply BF16 faster than FP32, for the files whose names end in bf16.
BF16_TARGETS = {"x86_64": {"avx512bf16": ("-march=cooperlake", "-mtune=generic")}}
PORTABLE = "portable"  # needs no instruction set, and is too slow for anything but comparisons


class Unavailable(Exception):
    """Compiled code cannot be used here; the text says why."""


def sources() -> list[Path]:
    """Return the C files of all stages; each becomes a library."""
    return sorted(path for path in _STAGES.rglob("*.c"))


def library_name(source: Path, target: str) -> str:
    """Name the library of a source: another text of it or of a header gives another name."""
    digest = hashlib.sha256()
    for path in (source, *sorted(source.parent.glob("*.h")), *sorted(HEADERS.glob("*.h"))):
        digest.update(path.read_bytes())
    digest.update(repr((_FLAGS[:-1], _architecture(target))).encode())
    return f"{source.parent.name}-{source.stem}-{target}-{digest.hexdigest()[:16]}.so"


def compile_source(source: Path, target: str, to: Path) -> Path:
    """Compile a C file to the library `to`.

    Raises: Unavailable without a compiler (`CC`, cc, gcc or clang), or when it fails.
    """
    command = [*_compiler(), *_FLAGS, *_architecture(target), "-o", str(to), str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode or not to.exists():
        first = " ".join(done.stderr.strip().splitlines()[:1]) or f"it left no {to.name}"
        raise Unavailable(f"`{shlex.join(command)}` failed: {first}")
    return to


def build_all(folder: Path) -> Iterator[Path]:
    """Compile every source for every instruction set of this kind of machine into `folder`.

    Raises: Unavailable as `compile_source` does, but after the others are compiled: an old compiler
    may not know every CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(source, target) for source in sources() for target in targets(source)]
    wanted = {library_name(source, target): (source, target) for source, target in pairs}
    for former in set(folder.glob("*.so")) - {folder / name for name in wanted}:
        former.unlink()
    failed = []
    for name, (source, target) in wanted.items():
        try:
            yield compile_source(source, target, folder / name)
        except Unavailable as error:
            failed.append(error)
    if failed:
        raise failed[0]


def targets(source: Path) -> list[str]:
    """Name the instruction sets of this kind of machine for which a file is worth compiling."""
    of = BF16_TARGETS if source.stem.endswith("bf16") else TARGETS
    return list(of.get(platform.machine(), {}))


def _architecture(target: str) -> tuple[str, ...]:
    known = (*TARGETS.values(), *BF16_TARGETS.values())
    return next((of[target] for of in known if target in of), ())


def _compiler() -> list[str]:
    for command in (shlex.split(os.environ.get("CC", "")), *([name] for name in _COMPILERS)):
        if command and shutil.which(command[0]):
            return command
    raise Unavailable(f"no C compiler was found: neither $CC nor {', '.join(_COMPILERS)}")
