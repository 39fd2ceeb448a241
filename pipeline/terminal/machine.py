"""Rich renderings of what a machine takes for a run, and of what it lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from koe.numbers import UNKNOWN, counted, duration, file_size
from pipeline.estimate.machine import GPUS, Machine, OnMachine
from pipeline.terminal.tables import grid, titled


def machine_json(chains: Sequence[OnMachine], machine: Machine) -> dict[str, Any]:
    """Return the machine and the chains on it; null stands for what never ends."""
    return _finite({**asdict(machine), "chains": [asdict(chain) for chain in chains]})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine_view(chains: Sequence[OnMachine], machine: Machine) -> RenderableType:
    """Render how long a machine takes, what each stage waits for, and what to change."""
    table = grid(f"On {_name(machine)}", "stage", "by itself", "waits for", "cores a GPU needs")
    for chain in chains:
        for stage in chain.stages:
            needs = stage.cores_per_gpu
            table.add_row(
                stage.stage,
                _time(stage.seconds),
                _what(stage.short, stage.waits_for_decoding),
                UNKNOWN if math.isnan(needs) else f"{needs:.1f}",
            )
    lines = [line for chain in chains for line in _said(chain)]
    lines += _about_all(chains, machine)
    return Group(Text(""), titled(table), Text(""), Text("\n".join(lines)))


def _name(machine: Machine) -> str:
    cores = f"{machine.cores:g} core{'' if machine.cores == 1 else 's'}"
    return f"{cores} and {machine.gpus:g} GPU{'' if machine.gpus == 1 else 's'}"


def _time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else "never"


def _what(short: Sequence[str], waits_for_decoding: bool) -> str:
    if not waits_for_decoding:
        return " and ".join(short) or UNKNOWN
    return " and ".join(["decoding", *(name for name in short if name != GPUS)])


def _said(chain: OnMachine) -> Iterator[str]:
    """Say of stages that work at the same time what they take together, and what would be faster."""
    names = ", ".join(stage.stage for stage in chain.stages)
    if not math.isfinite(chain.seconds):
        yield f"{names}: never, since the machine has no {' and no '.join(chain.short)}."
        return
    several = len(chain.stages) > 1  # of one alone the table says it
    if several:
        parts = [f"{name} for {duration(value)}" for name, value in chain.needed.items() if value]
        yield f"{names}, together: {duration(chain.seconds)}. Needed are {', '.join(parts)}."
    for stage in chain.stages:
        if stage.waits_for_decoding:
            yield (
                f"The GPU of {stage.stage} waits for its {counted(stage.threads, 'thread')} that "
                "decode."
            )
    if chain.cpus:
        sets = " ".join(f"--set {stage}.cpus_per_worker={n}" for stage, n in chain.cpus.items())
        yield (
            f"With {sets} it takes {duration(chain.seconds_then)}, and more "
            f"{' and '.join(chain.short_then)} would help further."
        )
    elif chain.short and several:
        yield f"More {' and '.join(chain.short)} would help, and nothing else."


def _about_all(chains: Sequence[OnMachine], machine: Machine) -> Iterator[str]:
    total = sum(chain.seconds for chain in chains)
    if math.isfinite(total):
        yield f"Up to the shards about {duration(total)}, without starts and ends."
    read = sum(chain.read_bytes for chain in chains)
    if read and machine.read_bytes_per_second is None and 0 < total < math.inf:
        yield (
            f"{file_size(read)} of audio are read, which takes no longer than this from "
            f"{file_size(read / total)}/s on; --read-megabytes says how fast it is."
        )
    if machine.gpus and not any(chain.needed.get(GPUS) for chain in chains):
        yield "No stage uses a GPU: score.provider and snac.device decide it."
