"""The HTML pages as a browser takes them apart, and what every one of them must offer."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from typing import Any, NamedTuple

import numpy as np

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
# Text that breaks out of careless templates: elements, attributes, JSON, scripts, Jinja, lines.
HOSTILE = (
    EVIL,
    "\"' onmouseover='alert(3)' &lt;b&gt; &amp;",
    "<!-- <script> ]]> --> \\u003c/script\\u003e",
    "{{ 7 * 7 }} {% raw %} {# #} ${7 * 7}",
    "\u2028\u2029 \u202egnol\u202c \u200b\ufeff \U000e0041 か\u3099 \U0001f468\u200d\U0001f469",
)
VOID = ("meta", "img", "input", "br")  # elements without an end


class Element(NamedTuple):
    tag: str
    named: dict[str, str]  # attributes
    around: tuple[str, ...]  # tags


class Page(HTMLParser):
    """A page's elements, texts, data by id, and which figure stands under which heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.tiles: dict[str, str] = {}  # value by name
        self._open: list[str] = []
        self._data: dict[str, str] = {}
        self._id = self._tile = ""
        self.feed(text)
        assert not self._open, f"{self._open} are not closed"
        self.data = {id: json.loads(found) for id, found in self._data.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.elements.append(Element(tag, named, tuple(self._open)))
        self._open += [tag] if tag not in VOID else []
        self._id = named.get("id", "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        within = self._open[-1] if self._open else ""
        if within == "script" and self._id:
            self._data[self._id] = self._data.get(self._id, "") + data
        elif within not in ("script", "style"):
            self.texts.append(data)
        if within == "dt":
            self._tile = data
        elif within == "b" and "dd" in self._open:
            self.tiles[self._tile] = data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def tags(self) -> list[str]:
        return [element.tag for element in self.elements]

    @property
    def addresses(self) -> list[str]:
        """Where a browser would load something from, or go to."""
        return [e.named[key] for e in self.elements for key in ("src", "href") if key in e.named]

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        return self.data["figures"]

    def layout(self, heading: str) -> dict[str, Any]:
        return self.figures[heading]["layout"]

    def traces(self, heading: str) -> list[dict[str, Any]]:
        return self.figures[heading]["data"]

    def trace(self, heading: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the first trace of that name, the faint one where there are two."""
        found = next(trace for trace in self.traces(heading) if trace["name"] == name)
        return numbers(found["x"]), numbers(found["y"])


def numbers(coded: Any) -> np.ndarray:
    """Read an array of a figure, which plotly writes as a list or as bytes."""
    if isinstance(coded, dict):
        return np.frombuffer(base64.b64decode(coded["bdata"]), np.dtype(coded["dtype"]))
    return np.array(coded)


def check_loads_nothing(page: Page) -> None:
    """Assert that a page refers to nothing outside itself, and would not be let."""
    assert all(re.match(r"data:|#[a-z0-9-]+$", address) for address in page.addresses)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    policies = [e.named["content"] for e in page.elements if "http-equiv" in e.named]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; ")
    assert "http" not in policies[0]


def check_accessible(page: Page) -> None:
    """Assert what screen readers and keys need: language, names, heads of tables, landmarks."""
    of = {tag: [e for e in page.elements if e.tag == tag] for tag in set(page.tags)}
    assert of["html"][0].named["lang"] == "en"
    assert len(of["main"]) == len(of["h1"]) == len(of["title"]) == 1
    assert of["nav"][0].named["aria-label"]
    assert all(head.named.get("scope") == "col" for head in of.get("th", ()))
    for tag, name in (("table", "aria-label"), ("audio", "aria-label"), ("img", "alt")):
        assert all(element.named.get(name) for element in of.get(tag, ())), tag
    for control in (*of.get("select", ()), *of.get("input", ())):
        assert "label" in control.around or control.named.get("aria-label")
    ids = [e.named["id"] for e in page.elements if "id" in e.named]
    assert len(ids) == len(set(ids))
    assert {a.named["href"][1:] for a in of["a"]} <= set(ids)
    assert all(section.named["aria-labelledby"] in ids for section in of["section"])
    for element in page.elements:
        if element.named.get("class") == "plot":
            assert element.named["role"] == "img"
            # what the picture says, not only what it is called
            assert re.search(r"\. .*\d", element.named["aria-label"]), element.named["aria-label"]
        if element.named.get("class") == "scroll":
            assert element.named["tabindex"] == "0"
            assert element.named["aria-label"]
