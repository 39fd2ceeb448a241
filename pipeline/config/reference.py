"""Writes what follows from the models and from `pipeline.yaml`: `python -m pipeline.config.reference`.

`docs/config.md` and `pipeline.schema.json` are made from the models. `pipeline.yaml` at the root of
the repository is written by hand; a copy of it lies in this package, where `koe init` finds it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from koe.settings import PathOrName, PathOrUrl
from pipeline.config.models import PipelineConfig

CONFIG, DOCS, SCHEMA = Path("pipeline.yaml"), Path("docs/config.md"), Path("pipeline.schema.json")
PACKAGED = Path(__file__).with_name("pipeline.yaml")
COMMAND = "python -m pipeline.config.reference"

_HEAD = f"""# Configuration

Every key of `pipeline.yaml`, made from the models by `{COMMAND}`.
`pipeline.yaml` itself shows the usual keys with comments. A key that is not here is refused, with
the nearest known one.
`--set key.path=value` overrides a key; the value is read as YAML.

Editors that know the YAML language server complete and check the file when it begins with

```yaml
# yaml-language-server: $schema=pipeline.schema.json
```
"""

_TYPES = {
    bool: "`true`, `false`",
    int: "integer",
    float: "number",
    str: "text",
    type(None): "`null`",
}
_PATHS = {PathOrUrl: "path or URL", PathOrName: "path or name"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def schema_text() -> str:
    """Return the text of `pipeline.schema.json`: JSON schema, draft 2020-12."""
    schema = PipelineConfig.model_json_schema(schema_generator=_Untitled)
    named = {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "koe's pipeline.yaml"}
    return json.dumps(named, indent=2, ensure_ascii=False) + "\n"


def packaged_config() -> str:
    """Return the text of the `pipeline.yaml` that the package carries."""
    return PACKAGED.read_text(encoding="utf-8")


def config_markdown() -> str:
    """Return the reference: a table of keys for each section of the configuration."""
    parts = [_HEAD]
    for path, model in sections(PipelineConfig):
        heading = f"`{path}`" if path else "The file"
        parts.append(f"## {heading}\n\n{_about(model)}" + _table(path, model))
    return "\n".join(parts)


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (path, model) of a model and all below it; a list's items have `[]` in their path."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            items = "[]" if get_origin(field.annotation) is list else ""
            yield from sections(inner, f"{_prefix(path)}{name}{items}")


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that only repeat the names of keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _about(model: type[BaseModel]) -> str:
    text = (model.__doc__ or "").strip()
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "".join(f"{part}\n\n" for part in paragraphs if part)


def _table(path: str, model: type[BaseModel]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        key = f"{_prefix(path)}{name}"
        if inner := _model_in(field.annotation):
            is_list = get_origin(field.annotation) is list
            is_optional = type(None) in get_args(field.annotation)
            kind = "list of sections, below" if is_list else "section, below"
            kind += ", or `null`" if is_optional else ""
            default = "required" if field.is_required() else "`[]`" if is_list else ""
            default = "`null`" if is_optional and field.default is None else default
            meaning = field.description or _about(inner).partition("\n")[0]
        else:
            kind, default = _kind(field), _default(field)
            meaning = field.description or ""
        cells = (f"`{key}`", kind, default, " ".join(meaning.split()))  # wrapped in the source
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _kind(field: FieldInfo) -> str:
    bounds = []
    for limit in field.metadata:
        bounds += [
            f"{word} {getattr(limit, name):g}"
            for name, word in _BOUNDS.items()
            if getattr(limit, name, None) is not None
        ]
        if getattr(limit, "pattern", None):
            bounds.append(f"matches `{limit.pattern}`")
        if getattr(limit, "min_length", None):
            bounds.append("not empty")
    return ", ".join([_type(field.annotation, field.metadata), *bounds])


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    for kind, name in _PATHS.items():
        if get_args(kind)[1] in metadata:
            return name
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], inner[1:])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(part) for part in inner)}]"
    if origin is dict:
        return f"{{{_type(inner[0])}: {_type(inner[1])}}}"
    return _TYPES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, float):
        return f"`{value:g}`"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


def main() -> None:
    """Write the files into the repository that this module lies in."""
    root = Path(__file__).parents[2]
    (root / DOCS).write_text(config_markdown(), encoding="utf-8")
    (root / SCHEMA).write_text(schema_text(), encoding="utf-8")
    PACKAGED.write_text((root / CONFIG).read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
