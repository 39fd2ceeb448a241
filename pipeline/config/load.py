"""Reads `pipeline.yaml`: overrides, errors that name the key, local paths made absolute."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from koe.errors import ConfigError
from pipeline.config.models import PipelineConfig


def load_config(path: Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Read `path`, apply `key.path=value` overrides, and resolve relative paths against it.

    Raises: ConfigError naming the key, and the nearest known one for an unknown key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            remedy="Name a config with -c, or write one with `koe demo DIR`.",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping of keys")
    for override in overrides or []:
        _override(data, override)
    try:
        config = PipelineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path} is not a valid configuration", _explain(error)) from None
    return _resolve(config, path.resolve().parent)


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override} is not of the form key.path=value")
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise ConfigError(f"--set {key} does not lead to a mapping of keys")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"--set {override}: the value is no YAML",
            problem,
            "Quote a value that holds { } [ ] : or #: --set 'key=\"{text}\"'.",
        ) from error


def _explain(error: ValidationError) -> str:
    """Turn pydantic's findings into lines that name the key and the nearest known one."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown key {key!r} ({hint})")
        else:
            lines.append(f"{key}: {problem['msg']}")
    return "; ".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = PipelineConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next(
            (a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), annotation
        )
    return sorted(model.model_fields)


def _resolve(config: PipelineConfig, folder: Path) -> PipelineConfig:
    """Make every local path absolute, so that a worker's working directory does not matter."""

    def absolute(path: str) -> str:
        return path if "://" in path else os.path.normpath(folder / Path(path).expanduser())

    def source(item):
        changes: dict[str, Any] = {"paths": [absolute(path) for path in item.paths]}
        if getattr(item, "audio_root", None):
            changes["audio_root"] = absolute(item.audio_root)
        return item.model_copy(update=changes)

    def local_or_id(name: str) -> str:
        candidate = folder / Path(name).expanduser()
        return (
            os.path.normpath(candidate)
            if candidate.exists() or name.startswith((".", "/", "~"))
            else name
        )

    sources = config.sources.model_copy(
        update={
            "speech": [source(item) for item in config.sources.speech],
            "text": [source(item) for item in config.sources.text],
        }
    )
    score = config.score.model_copy(
        update={"model": absolute(config.score.model) if config.score.model else None}
    )
    base = config.train.base_model
    return config.model_copy(
        update={
            "run_dir": absolute(config.run_dir),
            "sources": sources,
            "score": score,
            "snac": config.snac.model_copy(update={"weights": local_or_id(config.snac.weights)}),
            "tokenize": config.tokenize.model_copy(
                update={"tokenizer": local_or_id(config.tokenize.tokenizer)}
            ),
            "train": config.train.model_copy(
                update={"base_model": local_or_id(base) if base else None}
            ),
        }
    )
