"""Damage in the logs of a run blocks neither a resume nor the report, and what is sound stays."""

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.terminal.results import training_view
from tests.training.helpers import small_config, small_shards
from tests.training.logs import event, metrics_row, read_page, write_lines
from training.checkpoint.manifest import Progress
from training.config import TrainConfig
from training.logs import COUNTS, EVALUATIONS_FILE, EVENTS_FILE, LOGS, METRICS_FILE, read_lines
from training.loop import train
from training.metrics import RunLog, read_events, read_metrics
from training.model.distributed import single
from training.report import write_report

STEPS = 6
ROWS = {
    METRICS_FILE: [metrics_row(step) for step in range(1, STEPS + 1)],
    EVENTS_FILE: [event(step, "skip", step, reason="why") for step in range(1, STEPS + 1)],
    EVALUATIONS_FILE: [{"step": s, "data_step": s, "loss": 2.0} for s in range(1, STEPS + 1)],
}


def lines_of(name: str) -> list[bytes]:
    return [json.dumps(row).encode() + b"\n" for row in ROWS[name]]


def spliced(data: bytes, place: int, length: int, junk: bytes) -> bytes:
    place %= len(data) + 1
    return data[:place] + junk + data[place + length :]


JUNK = st.one_of(
    st.binary(max_size=60),
    st.integers(1, 200).map(lambda size: b"\0" * size),
    st.sampled_from([b"\xff\xfe", b"\r", b"\n", b"\n\n", b"[" * 5000, b"{}\n", b"[]\n", b"null\n",
                     b'{"data_step": "x"}\n', b'{"data_step": 1e999}\n', b'{"step": 1}\n',
                     b'{"step": 1, "data_step": true}\n', b"9" * 5000 + b"\n"]),
)  # fmt: skip
DAMAGE = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 300), JUNK), min_size=1, max_size=3
)


damaged_logs = given(name=st.sampled_from(LOGS), damage=DAMAGE)
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.mark.slow
@damaged_logs
@settings(max_examples=60, deadline=None, phases=PHASES)
def test_a_damaged_log_is_resumed_and_repaired(name, damage):
    with TemporaryDirectory() as made:
        folder = Path(made)
        damage_logs(folder, name, damage)
        there = [line + b"\n" for line in (folder / name).read_bytes().split(b"\n")[:-1]]
        sound = [json.loads(line) for line in there if line in lines_of(name)]
        Console(file=io.StringIO()).print(training_view(read_metrics(folder)))
        with RunLogs(folder) as log:
            log.event("skip", Progress(STEPS, STEPS, 0, "", 1))
        kept = list(read_lines(folder / name, pytest.fail, COUNTS))
        ids = [str(found.get("id")) for found in read_events(folder)]
    assert [row for row in kept if row in sound] == sound, "no sound line is lost, and none moves"
    assert ids[-1] not in ids[:-1], "a new event has an id of its own"


@pytest.mark.slow
@damaged_logs
@settings(max_examples=10, deadline=None, phases=PHASES)
def test_a_damaged_log_is_reported(name, damage):
    with TemporaryDirectory() as made:
        damage_logs(Path(made), name, damage)
        read_page(write_report(made))


def damage_logs(folder: Path, name: str, damage: list[tuple[int, int, bytes]]) -> None:
    """Write the logs; `damage` puts junk in the place of some bytes of the one called `name`."""
    for log in LOGS:
        data = b"".join(lines_of(log))
        for place, length, junk in damage if log == name else ():
            data = spliced(data, place, length, junk)
        (folder / log).write_bytes(data)


class RunLogs:
    """Opens the logs as a resume after the last step does."""

    def __init__(self, folder: Path) -> None:
        self._log = RunLog(folder, STEPS, TrainConfig())

    def __enter__(self) -> RunLog:
        return self._log

    def __exit__(self, *_: object) -> None:
        self._log.close()


@pytest.mark.parametrize("name", LOGS)
def test_what_is_left_out_is_said_by_the_resume_and_in_the_page(tmp_path, capsys, name):
    for log in LOGS:
        write_lines(tmp_path / log, ROWS[log])
    with open(tmp_path / name, "ab") as file:
        file.write(b"oops\n\xff\n[]\n\0\0\n")
    page = read_page(write_report(tmp_path))
    said = (
        f"4 damaged lines of {name} left out (line 7: Expecting value: line 1 column 1 (char 0); "
        "line 8: byte 0 is not UTF-8; line 9: it is a list, not an object; and 1 more)"
    )
    assert said in page.text
    with RunLogs(tmp_path):
        assert said in capsys.readouterr().err
    assert list(read_lines(tmp_path / name, pytest.fail)) == ROWS[name]


def test_an_incomplete_last_line_is_not_worth_a_word(tmp_path):
    write_lines(tmp_path / METRICS_FILE, ROWS[METRICS_FILE])
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"step": 7, "lo')
    assert list(read_lines(tmp_path / METRICS_FILE, pytest.fail)) == ROWS[METRICS_FILE]


def test_a_whole_checkpoint_is_resumed_beside_damaged_logs(tmp_path, capsys):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config()
    train(config, shards, out, single("cpu"))
    for name in LOGS:
        data = (out / name).read_bytes() if (out / name).exists() else b""
        (out / name).write_bytes(data[: len(data) // 2] + b"\0\xff{\n" + data[len(data) // 2 :])
    assert train(config, shards, out, single("cpu")) == config.max_steps
    assert f"of {METRICS_FILE} left out" in capsys.readouterr().err
    steps = [row["step"] for row in read_metrics(out)]
    assert len(steps) >= config.max_steps - 2
    assert steps == sorted(steps)
