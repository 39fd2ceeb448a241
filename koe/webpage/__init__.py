"""What koe's two HTML reports share: frame, style, script, charts; it knows neither of them."""

from koe.webpage.charts import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SLOT_COLOURS,
    Chart,
    new_figure,
)
from koe.webpage.page import Tile, cut, is_own_page, render, run_name, write_page

__all__ = [
    "AMBER",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "SLOT_COLOURS",
    "Chart",
    "Tile",
    "cut",
    "is_own_page",
    "new_figure",
    "render",
    "run_name",
    "write_page",
]
