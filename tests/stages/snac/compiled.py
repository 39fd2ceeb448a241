"""Compiles Triton's kernels for GPUs that need not be there, at both ends of SNAC 24 kHz.

    python -m tests.stages.snac.compiled 80 90      of compute capabilities 8.0 and 9.0

Prints the machine code's size in bytes for each kernel and width, and what ptxas says of it.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from koe.vocabulary import FRAME_SAMPLES
from stages.snac import fused

POINTERS = ("x", "constants", "inside", "out")
NUMBERS = ("rows", "margin")


def main(capability: int) -> None:
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    target = GPUTarget("cuda", capability, 32)
    for width, hop in ((48, 1), (384, 64)):
        columns, _ = fused._grid(1, width)
        shape = {"WIDTH": width, "PER_FRAME": FRAME_SAMPLES // hop}
        shape |= {"ROWS": fused._TILE // columns, "COLUMNS": columns}
        _compile(fused._snake_rows, shape, target)
        _compile(fused._unit_rows, shape | {"DILATION": 9}, target)


def _compile(kernel: Any, shape: dict[str, int], target: GPUTarget) -> None:
    types = dict.fromkeys(POINTERS, "*fp32") | dict.fromkeys(NUMBERS, "i32") | {"inside": "*u8"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in (*POINTERS, "rows")
    }
    done = triton.compile(ASTSource(kernel, signature, shape, aligned), target=target)
    print(kernel.__name__, shape, len(done.asm["cubin"]), "bytes", flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(int(argument))
