"""Where the ranks on a local Ray find each other: at a file, instead of at a port.

PyTorch's server of that (`TCPStore`) accepts connections on every interface, and the address that it
is given says only where the other ranks look for it. A `FileStore` needs no server
(https://docs.pytorch.org/docs/stable/distributed.html#shared-file-system-initialization).
"""

from __future__ import annotations

import ipaddress
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class _FileMeeting(TorchConfig):
    """Settings of a process group whose ranks meet at a file of `folder`, which all of them see."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    """Makes the process group as Ray Train does, but for the place of the meeting."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        # a file of its own for each start: the one before may be that of ranks that died
        place = f"file://{backend_config.folder}/{uuid.uuid4().hex}"
        world = len(worker_group)
        made = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=world,
                init_method=place,
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(world)
        ]
        ray.get(made)


@contextmanager
def meeting(backend: str, nodes: Sequence[dict[str, Any]]) -> Iterator[TorchConfig]:
    """Return how the ranks on these nodes of Ray make their process group of this backend.

    At a file where the nodes are all this machine, which a loopback address says; else as Ray does.
    """
    addresses = [ipaddress.ip_address(node["NodeManagerAddress"]) for node in nodes]
    if not all(address.is_loopback for address in addresses):
        yield TorchConfig(backend=backend)
        return
    with tempfile.TemporaryDirectory(prefix="koe-ranks-") as folder:
        yield _FileMeeting(backend=backend, folder=folder)
