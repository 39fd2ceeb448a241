"""Which machine `koe plan` speaks of: one that the user describes, the cluster, or this one."""

from __future__ import annotations

import os

from pipeline.config.models import PipelineConfig
from pipeline.estimate.machine import Machine


def machine_for(
    config: PipelineConfig,
    cores: float | None = None,
    gpus: float | None = None,
    read_bytes_per_second: float | None = None,
) -> Machine:
    """Describe the machine; what is not said of it is taken from the cluster that runs would join.

    Raises: ConfigError when there is none at `ray.address`.
    """
    if cores is None or gpus is None:
        found = _this_machine(config) if config.ray.address is None else _cluster(config)
        cores = found.cores if cores is None else cores
        gpus = found.gpus if gpus is None else gpus
    return Machine(cores, gpus, read_bytes_per_second)


def _this_machine(config: PipelineConfig) -> Machine:
    import torch

    return Machine(config.ray.num_cpus or os.cpu_count() or 1, torch.cuda.device_count())


def _cluster(config: PipelineConfig) -> Machine:
    from pipeline.execution.nodes import nodes_at  # importing Ray takes seconds

    return Machine.of(nodes_at(config.ray.address))
