"""`torchrun -m training --config run/config.json --shards DIR --out DIR`: one process per rank."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch.distributed as dist
from pydantic import ValidationError

from koe.errors import ConfigError, KoeError
from koe.renamed import with_present_names
from training import loop
from training.config import RENAMED, TrainConfig
from training.model.distributed import from_torchrun


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
        loop.train(config, options.shards, options.out, from_torchrun(config.device))
    except KoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


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
