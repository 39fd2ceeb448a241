"""Names that others wrote are text in the dataset card: no markup, no link, no key of its front matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import markdown
import pytest
import yaml

from koe.dataflow import INTERLEAVE
from koe.schema import SPEECH
from pipeline.stats.dataset_card import dataset_card
from pipeline.stats.model import Account, RunStats, ScoreStats, ShardStats, SplitStats
from tests.reports import empty_stats

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://host/x.png)",
    "x | y\n\n# Heading",
    "train\nlicense: mit",
    "`code` {{ 7 * 7 }} `<b>`",
    "\x1b[31mred \u202eabc\x00",
    "---",
    "a: b # c",
]


def card_of(name: str) -> tuple[dict, str]:
    account = Account(SPEECH, records_in=3, rejected=Counter({name: 3}))
    shards = ShardStats(
        rows=1, tokens_by_modality={name: 1}, splits={name: SplitStats(1, 1)}, row_capacity=8
    )
    stats: RunStats = replace(
        empty_stats(), sources={name: account}, scores=ScoreStats(1, 1, [name], {}), shards=shards
    )
    index = {
        "max_row_tokens": 8,
        INTERLEAVE: {"note": name},
        "tokenizer": {"name": name, "sha256": name},
    }
    text = dataset_card(index, stats)
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def shown(body: str) -> str:
    return markdown.markdown(body, extensions=["tables", "fenced_code"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_and_nothing_else(name):
    front, body = card_of(name)
    assert front["configs"][0]["data_files"] == [{"split": name, "path": f"{name}-*.arrow"}]
    assert set(front) == {"license", "tags", "size_categories", "configs"}
    page, plain = shown(body), shown(card_of("plain")[1])
    for tag in ("<h1", "<h2", "<tr", "<td", "<li", "<a ", "<img", "<script", "<b>"):
        assert page.count(tag) == plain.count(tag), tag
    assert not {"\x1b", "\x00", "\u202e"} & set(body)
