"""Runs a function in several processes that form a process group."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fsspec.config import conf, set_conf_env

from training.model.distributed import from_process_group

# Imported once by the server that forks: also pandas, which pyarrow imports as it reads rows.
FORKED_WITH = ["training.loop", "pandas"]


def run_ranks(function: Callable[..., None], world: int, *args: Any) -> None:
    """Call `function(ranks, *args)` in `world` processes joined by gloo; raise what they raise.

    Forked from a server that has imported the trainer once: eight imports cost more than the test.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(FORKED_WITH)
    mp.start_processes(
        _enter,
        (world, free_port(), dict(os.environ), function, args),
        nprocs=world,
        start_method="forkserver",
    )


def _enter(
    rank: int,
    world: int,
    port: int,
    environment: dict[str, str],
    function: Callable[..., None],
    args: Any,
) -> None:
    os.environ.update(environment)  # the server that forks may be older than the test's S3 server
    set_conf_env(conf)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    function(from_process_group("cpu", 0), *args)
    dist.destroy_process_group()


def free_port() -> int:
    """Return a port that nobody listens on at present."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
