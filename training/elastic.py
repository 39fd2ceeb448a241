"""How many Ray workers train when not all of them can: as many as divide the rows of a step."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)

from training.config import TrainConfig


class _WholeSteps(ElasticScalingPolicy):
    """Starts, after each loss of a node, with the largest world that the cluster has room for.

    A run that goes on is not interrupted for a node that has joined: its steps since the last
    checkpoint would be lost.
    """

    worlds: tuple[int, ...] = ()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((world for world in self.worlds if world <= room), default=0)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        del worker_group_state, worker_group_status
        self._maybe_send_resource_request()  # which keeps what is reserved
        return NoopDecision()


class Trainer(TorchTrainer):
    """Ray's trainer, whose number of workers is one of those that the configuration allows."""

    def __init__(self, *args: Any, config: TrainConfig, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._worlds = config.worlds

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            policy = _WholeSteps(self.scaling_config)
            policy.worlds = self._worlds
            settings["scaling_policy"] = policy
        return super()._initialize_and_run_controller(**settings)
