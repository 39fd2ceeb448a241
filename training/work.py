"""What every rank of a launched training does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from training.config import TrainConfig
from training.generation import SampleGenerator
from training.model.distributed import Ranks
from training.places import Place
from training.stopping import Why

# `loop.train`, or `find_rate.find_rate`. It returns the steps done, and stops when it is asked to.
Work: TypeAlias = Callable[
    [TrainConfig, Place, Place, Ranks, SampleGenerator | None, Callable[[], Why]], int
]
