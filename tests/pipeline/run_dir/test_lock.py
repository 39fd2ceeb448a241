"""A run directory belongs to one process at a time, and to none that has died."""

import os
import signal
import subprocess
import sys

import pytest

from koe.errors import ConfigError, StorageError
from pipeline.run_dir.lock import LOCK, run_lock
from pipeline.run_dir.storage import Storage
from tests.full_disk import full_disk


@pytest.mark.parametrize("name", ["a_file", "a_file/run", "a_file/run/x"])
def test_a_file_cannot_be_the_run_directory(tmp_path, name):
    (tmp_path / "a_file").touch()
    with (
        pytest.raises(
            ConfigError, match=r"cannot be the run directory because .*/a_file is a file"
        ),
        run_lock(Storage(str(tmp_path / name))),
    ):
        pass


def test_a_disk_without_room_for_the_lock_is_named(tmp_path):
    with (
        full_disk(0),
        pytest.raises(StorageError, match=r"cannot be used as the run directory .*too large"),
        run_lock(Storage(str(tmp_path / "run"))),
    ):
        pass


def test_a_lock_whose_holder_could_not_be_written_in_full_holds(tmp_path):
    storage = Storage(str(tmp_path / "run"))
    with full_disk(50), run_lock(storage):
        refused = pytest.raises(ConfigError, match="is in use because")
        with refused, run_lock(storage):
            pass


HOLD = """
import sys, time
from pipeline.run_dir.lock import run_lock
from pipeline.run_dir.storage import Storage
sys.argv = ["koe", "run", "-c", "mine.yaml"]
with run_lock(Storage(sys.stdin.readline().strip())):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(f"{tmp_path / 'run'}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_told_of_the_first(holder, tmp_path):
    words = (
        f"is in use because `koe run -c mine.yaml`, process {holder.pid} on .*koe status --watch"
    )
    with pytest.raises(ConfigError, match=words), run_lock(Storage(str(tmp_path / "run"))):
        pass
    with run_lock(Storage(str(tmp_path / "another"))):
        pass


def test_a_killed_run_leaves_no_lock_behind(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(Storage(str(tmp_path / "run"))):
        assert f'"process": {os.getpid()}' in (tmp_path / "run" / LOCK).read_text()
    with run_lock(Storage(str(tmp_path / "run"))):
        pass


def test_a_folder_that_cannot_be_made_is_named_and_the_runs_own_failures_stay(tmp_path):
    with (
        pytest.raises(StorageError, match=r"/proc/none cannot be used as the run dir.*Set run_dir"),
        run_lock(Storage("/proc/none")),
    ):
        pass
    with pytest.raises(OSError, match="of the run"), run_lock(Storage(str(tmp_path / "run"))):
        raise OSError("of the run")
