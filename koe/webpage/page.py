"""Renders a page from its template. Every text is escaped, and the page loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from koe import numbers
from koe.atomic import atomically
from koe.errors import StorageError
from koe.webpage.charts import Chart

MAX_TEXT = 400  # characters of a text that are shown
_GENERATOR = '<meta name="generator" content="koe">'
_HEAD_BYTES = 4096  # of a page, in which the generator is named


@dataclass(frozen=True)
class Tile:
    """A headline figure; `note` explains it."""

    name: str
    value: str
    note: str = ""


def render(
    package: str,
    template: str,
    *,
    charts: Mapping[str, Iterable[Chart]],
    data: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """Render a template of `package` that extends `frame.html.j2`.

    `charts` are the page's charts by section. `data` is what its script reads, by the id of the
    element that holds it as JSON. `values` are what the template itself shows, and what the frame
    shows: `name` (of the run), `kind` (of report), `sections` (headings by id) and `tiles`.
    """
    shown = [chart for group in charts.values() for chart in group if not chart.is_empty]
    figures = {chart.title: chart.figure for chart in shown}
    page = _environment(package).get_template(template)
    return page.render(charts=charts, data={"figures": figures, **(data or {})}, **values)


def is_own_page(path: Path) -> bool:
    """Tell whether koe wrote this file. Raises: OSError when it cannot be read."""
    with path.open("rb") as file:
        return _GENERATOR.encode() in file.read(_HEAD_BYTES)


def write_page(path: Path, text: str) -> Path:
    """Write a page, and its folder if need be; it appears once it is complete. Returns `path`.

    Raises: StorageError when it cannot be written.
    """
    try:
        with atomically(path) as file:
            # JSON may hold half a surrogate pair, which no encoding can write
            file.write(text.encode("utf-8", "replace"))
    except OSError as error:
        raise StorageError(
            f"the report {path} cannot be written",
            str(error),
            "Name another place for it, where files can be written.",
        ) from error
    return path


def run_name(folder: Path) -> str:
    """Name a run after the nearest folder that is not called `run` or `train`."""
    around = (folder, *folder.parents)
    return next((f.name for f in around if f.name not in ("", "run", "train")), folder.name)


def cut(value: Any, length: int = MAX_TEXT) -> str:
    """Write a value as text of at most `length` characters; "–" for None."""
    text = numbers.UNKNOWN if value is None else str(value)
    return text if len(text) <= length else f"{text[:length].rstrip()} \u2026"


def _figure(figure: go.Figure) -> Any:
    return json.loads(str(figure.to_json()))  # plotly's own encoder knows arrays, and NaN as null


def _environment(package: str) -> Environment:
    """Make the environment of a page, whose templates are those of `package` and of this one."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("koe.webpage")])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # the filter `tojson` also spells "<" out, so that no text can end its <script>
    made.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "default": _figure,
    }
    made.filters |= {
        "cut": cut,
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "words": lambda name: name.replace("_", " "),
        "count": numbers.count,
        "counted": numbers.counted,
        "percent": numbers.percent,
        "short": numbers.short,
    }
    made.globals |= {
        "generator": Markup(_GENERATOR),  # nosec B704
        "plotly": Markup(get_plotlyjs()),  # nosec B704
        "raw": lambda name: Markup(loader.get_source(made, name)[0]),  # nosec B704
    }
    return made
