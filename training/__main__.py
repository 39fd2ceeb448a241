"""`torchrun -m training --config run/config.json --shards DIR --out DIR`: one process per rank."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
from pydantic import ValidationError

from koe.errors import ConfigError, KoeError, Stopped
from koe.renamed import with_present_names
from training import loop
from training.config import RENAMED, TrainConfig
from training.lock import training_lock
from training.metrics import say
from training.model.distributed import Ranks, from_torchrun
from training.places import Place, absolute
from training.stopping import listening


def main(arguments: list[str] | None = None) -> int:
    """Train as the rank that the environment names, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="a run's config.json, or its train section alone, as JSON",
    )
    parser.add_argument("--shards", required=True, help="folder or URL with index.json")
    parser.add_argument("--out", required=True, help="folder or URL of checkpoints and logs")
    options = parser.parse_args(arguments)
    try:
        config = _read_config(options.config)
        return _train(config, options.shards, absolute(options.out), from_torchrun(config.device))
    except KoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _train(config: TrainConfig, shards: Place, out: Place, ranks: Ranks) -> int:
    """Train as one of the ranks until the end, or until it is asked to stop; return the exit code."""
    tell = say if ranks.is_main else lambda text: None
    with listening(config.max_hours, say=tell) as asked:
        try:
            with _locked(out, ranks):
                loop.train(config, shards, out, ranks, asked=asked)
            return 0
        except Stopped as stopped:
            ended = stopped
            ranks.wait()  # torchrun tells the others to end as soon as one has left
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    tell(f"{ended} Go on with: {_command()}")
    return ended.exit_code


@contextmanager
def _locked(out: Place, ranks: Ranks) -> Iterator[None]:
    """Lock the folder on the first rank, on which the others wait.

    Raises: ConfigError on all ranks where another process trains there.
    """
    with ExitStack() as held:
        refused: KoeError | None = None
        if ranks.is_main:
            try:
                held.enter_context(training_lock(out, say))
            except KoeError as error:
                refused = error
        if ranks.maximum(refused is not None):
            raise refused or ConfigError("the first rank cannot lock the folder of the training")
        yield


def _command() -> str:
    """Return the command that this process, or the torchrun that it is a rank of, was started with."""
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(OSError):
            started = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8")
            words = started.rstrip("\0").split("\0")
    return shlex.join(words)


def _read_config(path: Path) -> TrainConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        section = with_present_names(data.get("train", data), RENAMED, str(path))
        return TrainConfig.model_validate(section)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigError(f"{path} is not a valid train configuration", problems) from None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON", str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
