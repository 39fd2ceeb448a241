"""What koe's self-contained HTML pages share: frame, theme, charts, tables; knows no page."""

from koe.webpage.charts import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SLOT_COLOURS,
    Chart,
    Figures,
    new_figure,
)
from koe.webpage.frame import (
    Page,
    Section,
    Tile,
    document,
    is_own_page,
    write_page,
)
from koe.webpage.page import MAX_TEXT, cut, render
from koe.webpage.text import NOTHING, card, escape, run_name, scroll, short_number, table

__all__ = [
    "AMBER",
    "BLUE",
    "GREEN",
    "GREY",
    "MAX_TEXT",
    "NOTHING",
    "ORANGE",
    "RED",
    "SLOT_COLOURS",
    "Chart",
    "Figures",
    "Page",
    "Section",
    "Tile",
    "card",
    "cut",
    "document",
    "escape",
    "is_own_page",
    "new_figure",
    "render",
    "run_name",
    "scroll",
    "short_number",
    "table",
    "write_page",
]
