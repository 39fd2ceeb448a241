"""What the terminal says of a learning-rate range test."""

import io

from rich.console import Console

from pipeline.terminal.results import rate_view

POINT = {"rate": 1e-5, "loss": 3.0, "smoothed": 3.25, "gradient_norm": 1.5}
FOUND = {
    "points": [POINT] * 100,
    "stopped": "the loss was nan",
    "safe_rate": 1e-4,
    "steepest_rate": 2e-4,
    "rising_rate": 1e-3,
    "learning_rate": 5e-5,
    "reason": "a rule",
}


def shown(found):
    console = Console(width=100, file=io.StringIO())
    console.print(rate_view(found))
    return " ".join(console.file.getvalue().split())


def test_the_safe_rate_is_told_with_its_reasons():
    text = shown(FOUND)
    assert "the test ended because the loss was nan" in text
    assert "fell fastest at 2.00e-04, and began to rise at 1.00e-03" in text
    assert "a safe train.learning_rate is 1.00e-04 (now 5.00e-05): a rule" in text
    assert text.count("1.00e-05 3.0000 3.2500 1.5") == 20


def test_without_a_safe_rate_the_reason_is_told():
    nothing = {"safe_rate": None, "steepest_rate": None, "rising_rate": None, "points": []}
    text = shown(FOUND | nothing | {"stopped": "", "reason": "there were 0 steps"})
    assert text == "the test ended at its highest rate no safe rate: there were 0 steps"
