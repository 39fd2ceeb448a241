"""Starts or joins Ray, for the stages and for the trainer alike."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from koe.errors import ConfigError


@contextmanager
def ray_session(
    address: str | None, num_cpus: int | None, local_environment: Mapping[str, str], **options: Any
) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one of `num_cpus`, until the block ends.

    If this process is already connected to Ray, that session is used as it is. `local_environment`
    is set for a local Ray, except for variables that the user set; a cluster keeps its own.
    `options` are those of `ray.init`.
    Raises: ConfigError when no Ray can be reached or started.
    """
    import ray  # seconds of import that most commands do not need

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry from a user's cluster
    options["address"] = address or "local"
    added = {}
    if address is None:
        options |= {"num_cpus": num_cpus, "include_dashboard": False}
        added = {key: value for key, value in local_environment.items() if key not in os.environ}
    os.environ.update(added)
    try:
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
        yield
    finally:
        ray.shutdown()
        for name in added:
            os.environ.pop(name, None)


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
