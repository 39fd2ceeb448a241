"""Reads `pipeline.yaml`: renamed keys, overrides, and errors that name the key."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from koe.errors import ConfigError
from koe.renamed import present_path, with_present_names
from pipeline.config.models import RENAMED, PipelineConfig


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's loaders take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            is_own = node.start_mark.index <= key_node.start_mark.index < node.end_mark.index
            if not is_own or key_node.tag == "tag:yaml.org,2002:merge":
                continue  # what an alias brings may be overridden
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                problem = (
                    f"the key {key_node.value!r} stands twice in one section, again on line {line}"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_config(
    path: Path, overrides: list[str] | None = None, option: str = "--set"
) -> PipelineConfig:
    """Read `path` and apply `key.path=value` overrides; relative paths start from its folder.

    `option` is what the overrides come from, for messages.

    Raises: ConfigError naming the key, and the nearest known one for an unknown key.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # nosec B506
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            remedy="Name a configuration with -c, or write one with `koe init` or `koe demo DIR`.",
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path} is a folder", remedy="Name the configuration in it, a YAML file, with -c."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", error.strerror or str(error)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is not a mapping of keys")
    data = with_present_names(data, RENAMED, str(path))
    in_file = copy.deepcopy(data)
    for override in overrides or []:
        _override(data, override)
    data = with_present_names(data, RENAMED, "--set")
    try:
        return PipelineConfig.model_validate(data, context={"folder": path.resolve().parent})
    except ValidationError as error:
        what = f"{path} is not a valid configuration"
        if overrides and _is_valid(in_file, path):
            what = f"{path} is not a valid configuration with {option} {' '.join(overrides)}"
        raise ConfigError(what, _explain(error)) from None


def _is_valid(data: dict[str, Any], path: Path) -> bool:
    try:
        PipelineConfig.model_validate(data, context={"folder": path.resolve().parent})
    except ValidationError:
        return False
    return True


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override} is not of the form key.path=value")
    *parents, last = present_path(key, RENAMED, "--set").split(".")
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
            f"--set {override}: the value is not valid YAML",
            problem,
            "Quote a value that holds { } [ ] : or #: --set 'key=\"{text}\"'.",
        ) from error


def _explain(error: ValidationError) -> str:
    """Turn pydantic's findings into lines that name the key and the nearest known one."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not _is_alternative(part))
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            said = f"unknown key {key!r} ({hint})"
        elif problem["type"] == "model_type" and problem["loc"]:
            known = ", ".join(_known_keys(problem["loc"]))
            said = f"{key} is a section, not {problem['input']!r} (its keys: {known})"
        elif key in lines:  # what another alternative of the same value should be
            said = f"{lines[key]}, or {problem['msg'].removeprefix('Input should be ')}"
        else:
            said = f"{key}: {problem['msg'].removeprefix('Value error, ')}"
        lines[key] = said
    # of alternatives, the one that came nearer is told
    told = [said for key, said in lines.items() if not any(k.startswith(f"{key}.") for k in lines)]
    return "; ".join(told)


def _is_alternative(part: int | str) -> bool:
    """Tell whether a part of a place is no key, but pydantic's name for one type of several."""
    return isinstance(part, str) and "[" in part


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
