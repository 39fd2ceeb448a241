"""A learning-rate range test (Smith 2015, arXiv 1506.01186): which rate a run can bear.

The rate rises exponentially from step to step while the loss is watched, from the weights and
moments of the newest checkpoint, or of a new run, on the data that would come next. The test ends
itself where the loss rises, before anything explodes. Nothing of it is kept but its findings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch.nn.utils import clip_grads_with_norm_

from koe.atomic import atomically
from koe.errors import ConfigError, ContractError, Stopped, StorageError
from training.config import RateTestConfig, TrainConfig
from training.generation import SampleGenerator
from training.guard import Guard, Limits
from training.logs import RATE_FILE
from training.loop import update
from training.metrics import say
from training.mirror import local_copy
from training.model.distributed import Ranks, total_gradient_norm
from training.places import Place, RemoteFolder, beside, local_folder
from training.run import Run, open_run
from training.step import accumulate_gradients
from training.stopping import Why, never

SMOOTHING = 0.8  # what a mean loss keeps of the steps before; 200 steps have 28 to a decade
RISE_MARGIN = 10  # the rate at which the loss begins to rise, divided by this, is still safe
_SAID = 20  # lines on the console

RULE = (
    "the rate at which the smoothed loss falls fastest, but at most a tenth of the one at which it "
    "begins to rise"
)


@dataclass(frozen=True)
class Point:
    """A step of the test: the loss before its update, and the gradient norm before clipping."""

    rate: float
    loss: float
    smoothed: float
    gradient_norm: float


class Sweep:
    """The points so far, and whether the next step may be taken."""

    def __init__(self, settings: RateTestConfig, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._mean = 0.0
        self.points: list[Point] = []

    def add(self, rate: float, loss: float, gradient_norm: float) -> str:
        """Take a step's loss and norm; return why its update must not be made, or "".

        A step that is not finite, or beyond the guard's limits, becomes no point.
        """
        for name, value, limit in (
            ("loss", loss, self._limits.loss),
            ("gradient norm", gradient_norm, self._limits.gradient_norm),
        ):
            if not math.isfinite(value):
                return f"the {name} was {value} at a rate of {rate:.2e}"
            if value > limit:
                return f"the {name} was {value:.4g} at a rate of {rate:.2e}, above {limit:.4g}"
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        # a mean that starts from 0 is too small by what has not come in yet
        smoothed = self._mean / (1 - SMOOTHING ** (len(self.points) + 1))
        self.points.append(Point(rate, loss, smoothed, gradient_norm))
        lowest = min(point.smoothed for point in self.points)
        if smoothed > self._settings.max_rise * lowest:
            return (
                f"the smoothed loss was {smoothed:.4g} at a rate of {rate:.2e}, after {lowest:.4g}"
            )
        return ""


@dataclass(frozen=True)
class Advice:
    """What follows from the points. `safe_rate` is None where they do not tell, and `reason` why."""

    safe_rate: float | None
    steepest_rate: float | None
    rising_rate: float | None
    reason: str


def rates(settings: RateTestConfig) -> list[float]:
    """Return the rate of each step."""
    found = np.geomspace(settings.lowest_rate, settings.highest_rate, settings.steps)
    return [float(rate) for rate in found]


def advise(points: list[Point], stopped: str) -> Advice:
    """Choose a safe rate (see `RULE`); `stopped` says why the test ended, "" at its last rate."""
    if len(points) < 3:
        return Advice(None, None, None, f"there were {len(points)} steps: {stopped}")
    smoothed = np.array([point.smoothed for point in points])
    lowest = int(smoothed.argmin())
    noise = float(np.std([point.loss - point.smoothed for point in points[: lowest + 1]]))
    # of a mean that keeps SMOOTHING of the past, the noise is this much smaller
    noise *= math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))
    if smoothed[0] - smoothed[lowest] <= 2 * noise:
        return Advice(None, None, None, "the loss never fell by more than its noise")
    steepest = _steepest(points[: lowest + 1])
    rising = points[lowest].rate
    reason = RULE if stopped else f"{RULE}; it had not risen at the highest rate yet"
    return Advice(min(steepest, rising / RISE_MARGIN), steepest, rising, reason)


def _steepest(points: list[Point]) -> float:
    """Return the rate in the middle of the piece in which the smoothed loss falls fastest."""
    width = max(1, min(round(1 / (1 - SMOOTHING)), len(points) - 1))
    smoothed = np.array([point.smoothed for point in points])
    start = int((smoothed[width:] - smoothed[:-width]).argmin())
    return points[start + width // 2].rate


def find_rate(
    config: TrainConfig,
    shards: Place,
    out_dir: Place,
    ranks: Ranks,
    sample_generator: SampleGenerator | None = None,
    asked: Callable[[], Why] = never,
) -> int:
    """Run the test, and write `find_rate.json` into `out_dir`; return the number of its steps.

    Every rank must call it. `sample_generator` is not used; the arguments are those of
    `training.loop.train`. Raises: ConfigError, ContractError, StorageError, Stopped.
    """
    del sample_generator
    with open_run(config, shards, out_dir, ranks, None, asked, writes=False) as run:
        sweep = Sweep(config.rate_test, Guard(config.guard, config.learning_rate).limits())
        stopped = _rise(run, sweep)
        if ranks.is_main:
            _write(out_dir, _findings(run, sweep, stopped))
    return len(sweep.points)


def _rise(run: Run, sweep: Sweep) -> str:
    """Take steps at ever higher rates; return why they ended, "" at the last."""
    planned = rates(run.config.rate_test)
    for number, rate in enumerate(planned):
        if why := Why(int(run.ranks.maximum(run.asked()))):
            raise Stopped(
                f"the test was stopped after {number} steps",
                why.reason,
                "It has written nothing.",
                exit_code=why.exit_code,
            )
        batches = run.loader.batches(run.progress.data_steps + number)
        result = accumulate_gradients(
            run.model, batches, run.ranks, run.config.precision, len(run.rows.sources)
        )
        norm = total_gradient_norm(run.parameters)
        if stopped := sweep.add(rate, result.loss, float(norm)):
            return stopped
        if run.ranks.is_main and number % max(1, len(planned) // _SAID) == 0:
            point = sweep.points[-1]
            say(f"learning rate {rate:.2e}  loss {point.loss:.4f}  smoothed {point.smoothed:.4f}")
        clip_grads_with_norm_(run.parameters, run.config.max_gradient_norm, norm)
        update(run, rate, run.config.new_rows.learning_rate_factor)
        run.optimizer.zero_grad(set_to_none=True)
    return ""


def _findings(run: Run, sweep: Sweep, stopped: str) -> dict[str, Any]:
    return {
        "step": run.progress.steps,
        "data_step": run.progress.data_steps,
        "rows_per_step": run.config.rows_per_step,
        "learning_rate": run.config.learning_rate,
        "settings": run.config.rate_test.model_dump(),
        "stopped": stopped,
        **asdict(advise(sweep.points, stopped)),
        "points": [asdict(point) for point in sweep.points],
    }


def _write(out_dir: Place, findings: dict[str, Any]) -> None:
    data = json.dumps(findings).encode()
    folder = local_folder(out_dir)
    if folder is None:
        RemoteFolder(str(out_dir)).write(RATE_FILE, data)
        return
    try:
        with atomically(folder / RATE_FILE) as file:
            file.write(data)
    except OSError as error:
        raise StorageError(
            f"{folder / RATE_FILE} cannot be written", str(error), "Free or mount the disk."
        ) from error


def read_findings(out_dir: Place) -> dict[str, Any]:
    """Read what the last test found. Raises: ConfigError, ContractError, StorageError."""
    with local_copy(out_dir, [RATE_FILE]) as folder:
        try:
            return json.loads((folder / RATE_FILE).read_bytes())
        except FileNotFoundError:
            raise ConfigError(
                f"{beside(out_dir, RATE_FILE)} is not there", remedy="Run `koe train --find-rate`."
            ) from None
        except (OSError, ValueError) as error:
            raise ContractError(
                f"{beside(out_dir, RATE_FILE)} cannot be read", str(error)
            ) from error
