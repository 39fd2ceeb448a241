"""Starts or joins Ray, for the stages and for the trainer alike."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from koe.errors import ConfigError

# Gloo and NCCL, which connect the ranks of a training, choose another interface by themselves.
_LOOPBACK = (
    {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)


@contextmanager
def ray_session(
    address: str | None, num_cpus: int | None, local_environment: Mapping[str, str], **options: Any
) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one of `num_cpus`, until the block ends.

    If this process is already connected to Ray, that session is used as it is. A local Ray listens
    on the loopback interface alone. `local_environment` is set for it, except for variables that
    the user set; a cluster keeps its own. `options` are those of `ray.init`.
    Raises: ConfigError when no Ray can be reached or started.
    """
    import ray  # seconds of import that most commands do not need

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry from a user's cluster
    options["address"] = address or "local"
    with ExitStack() as undo:
        if address is None:
            options |= {"num_cpus": num_cpus, "include_dashboard": False}
            undo.enter_context(_loopback_only())
            wanted = {**_LOOPBACK, **local_environment}
            unset = {name: value for name, value in wanted.items() if name not in os.environ}
            undo.enter_context(_environment(unset))
        undo.callback(_disconnect)
        _connect(address, options)
        yield


def _connect(address: str | None, options: dict[str, Any]) -> None:
    import ray

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with without_greeting():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray could not be {'reached at ' + address if address else 'started'}",
            str(error).splitlines()[0],
            "Check ray.address, or leave it null to start a local Ray.",
        ) from error
    finally:  # `logging_config` is meant for Ray's workers, not for this process
        root.setLevel(level)
        root.handlers[:] = handlers


def _disconnect() -> None:
    """End the session, and let nothing that is still at work here begin another one.

    Ray connects by itself to whatever cluster it finds on the machine when something asks of it
    without a session, as the thread of an abandoned stream does: that could be another user's.
    """
    import ray
    from ray._private import auto_init_hook

    auto_init_hook.enable_auto_connect = False
    ray.shutdown()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let the servers of a Ray that this process starts listen on 127.0.0.1 or ::1 alone.

    They listen on every interface unless the node's own address is the loopback's, and Ray takes
    that address only where it believes that there can be no cluster, as on macOS and Windows
    (`ray._private.services.get_node_ip_address`): `_node_ip_address` of `ray.init` is replaced by
    that of another interface. The variable tells the processes that Ray starts.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # read from the variable when Ray was imported
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the time of the block, then give them back the values that they had."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def without_greeting() -> Iterator[None]:
    """Keep the line in which Ray's core reports where its log level comes from out of stderr."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)  # the core writes there, not to sys.stderr
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if b"Set ray log level from environment variable" not in line:
                    os.write(2, line)
