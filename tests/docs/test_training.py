"""The table of settings in docs/training.md is that of the code."""

from pathlib import Path

from training.changes import EFFECTS, MAX_LEAP, Kind

PAGE = Path("docs/training.md")
BEGIN, END = "<!-- table of training.changes -->\n", "<!-- end of the table -->"


def table() -> str:
    """Render `EFFECTS`: settings of one effect share a row, those of none come last."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, effect in EFFECTS.items():
        rows.setdefault((effect.does, effect.kind.value), []).append(f"`{name}`")
    ordered = sorted(rows.items(), key=lambda row: list(Kind).index(Kind(row[0][1])))
    lines = ["| setting below `train.` | effect of a change | a resume |", "|---|---|---|"]
    lines += [f"| {', '.join(names)} | {does} | {kind} |" for (does, kind), names in ordered]
    return "\n".join(lines) + "\n"


def test_the_table_of_a_resume_is_that_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0]
    assert found == table(), f"put this between the marks in {PAGE}:\n{table()}"


def test_the_page_names_the_leap_that_is_refused():
    assert f"to more than {MAX_LEAP} times what" in PAGE.read_text(encoding="utf-8")
