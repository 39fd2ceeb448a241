"""How a worker process holds on to memory, where the defaults cost speed."""

from __future__ import annotations

import ctypes
import os
import platform


def keep_memory() -> None:
    """Let the process keep the memory of one clip's activations for the next.

    glibc returns every activation (tens of megabytes) to the kernel and faults it in again: with
    clips of 2 to 9 s on one Zen 3 core, 4.2 M page faults and 2.3 audio-seconds a second against
    0.3 M and 3.9. oneDNN caches its kernels by clip length and keeps 2 GB of buffers with them
    that no other length can use; without that cache nothing is slower.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in (
        (-8, 1),  # M_ARENA_MAX: all threads share the heap, only it can hold large blocks
        (-4, 0),  # M_MMAP_MAX: no block is mapped by itself
        (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: free memory at the heap's top stays
    ):
        mallopt(option, value)
