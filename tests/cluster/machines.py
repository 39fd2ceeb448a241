"""Machines that can be killed: network namespaces of this one, joined by a switch, with Ray on each."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_PORT = 6379
_SWITCH = "switch"
# A node that is gone is missed within seconds instead of half a minute.
_ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "OMP_NUM_THREADS": "1",
    # Ray ends workers when this machine's memory is nearly full, whoever uses it: not what is tried here.
    "RAY_memory_monitor_refresh_ms": "0",
    # Since 2.60 a head asks for a token, which all machines of a cluster must be given.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def why_not() -> str:
    """Say why namespaces cannot be made here; empty where they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root and Linux"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "needs the programs ip and unshare"
    name = f"koe-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "bridge", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"namespaces cannot be made here: {error.stderr.strip()}"
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", name)
    return ""


def _ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Machines:
    """The first machine that is started is the head of the cluster; all end with the block."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._undo = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Machines:
        with ExitStack() as undo:
            # Ray's sockets lie there, whose paths may have 107 characters only.
            self.folder = Path(tempfile.mkdtemp(prefix="koe-", dir="/tmp"))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._namespace(_SWITCH, undo)
            _ip("-n", self._of(_SWITCH), "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._of(_SWITCH), "link", "set", "bridge", "up")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            self.kill(name)
        for process in self._processes:
            process.wait()
        self._undo.close()

    @property
    def address(self) -> str:
        """Where the head's Ray is reached."""
        return f"{self.ip(self._names[0])}:{_PORT}"

    def ip(self, name: str) -> str:
        return f"10.77.0.{self._names.index(name) + 1}"

    def start(
        self, name: str, cpus: int, others: Mapping[str, float] | None = None
    ) -> subprocess.Popen[str]:
        """Add a machine that joins the cluster, or is its head."""
        is_head = not self._names
        self._names.append(name)
        self._namespace(name, self._undo)
        self._connect(name)
        where = ["--head", f"--port={_PORT}"] if is_head else [f"--address={self.address}"]
        if is_head:
            where += ["--include-dashboard=false", f"--temp-dir={self.folder}/ray"]
        command = [
            str(Path(sys.executable).with_name("ray")), "start", *where, "--block",
            f"--node-ip-address={self.ip(name)}", f"--num-cpus={cpus}", "--num-gpus=0",
            "--object-store-memory=80000000", "--include-log-monitor=false",
            f"--resources={json.dumps(dict(others or {}))}",
        ]  # fmt: skip
        process = self.run(name, command)
        if is_head:
            self.wait(lambda: "Ray runtime started" in self.printed(), 120, "starting the head")
        return process

    def run(self, name: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program on a machine; what it prints goes to a file of `folder`."""
        inside = f'hostname {name} && exec "$@"'
        with (self.folder / f"{name}-{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._of(name), "unshare", "--uts", "sh", "-c", inside,
                 "sh", *command],
                stdout=log, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
                env=os.environ | _ENVIRONMENT,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def kill(self, name: str) -> int:
        """End every process of a machine at once, as when its power fails; return how many."""
        number = 0
        while pids := _ip("netns", "pids", self._of(name)).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    number += 1
            time.sleep(0.05)
        return number

    def cut_off(self, name: str) -> None:
        """Take a machine off the network, as when its cable is pulled; its programs go on."""
        _ip("-n", self._of(name), "link", "set", "eth0", "down")

    def wait(self, what: Callable[[], bool], seconds: float, of: str) -> None:
        """Wait until something holds. Raises: AssertionError with what the machines printed."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise AssertionError(f"{of} took more than {seconds:g} s\n{self.printed()}")
            time.sleep(0.2)

    def printed(self) -> str:
        """Return the end of what every program printed."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def _of(self, name: str) -> str:
        return f"koe-{os.getpid()}-{name}"

    def _namespace(self, name: str, undo: ExitStack) -> None:
        _ip("netns", "add", self._of(name))
        undo.callback(_ip, "netns", "del", self._of(name))
        _ip("-n", self._of(name), "link", "set", "lo", "up")

    def _connect(self, name: str) -> None:
        """Lay a cable from a machine to the switch; neither end is ever in this machine's network."""
        port, own = f"port{len(self._names)}", self._of(name)
        switch = self._of(_SWITCH)
        _ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", own, "addr", "add", f"{self.ip(name)}/24", "dev", "eth0")
        _ip("-n", own, "link", "set", "eth0", "up")
