"""Ray is started without a change to what this process logs, and for this machine alone."""

import logging
import os
import socket
import subprocess
import sys

import pytest

from koe.ray_session import ray_session
from tests.koe.listening import Listener, listeners, reachable_from_elsewhere


def _variables() -> dict[str, str | None]:
    names = ("KOE_OF_A_TEST", "GLOO_SOCKET_IFNAME", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    return {name: os.environ.get(name) for name in names}


@pytest.fixture(scope="module", autouse=True)
def session():
    import ray

    root = logging.getLogger()
    before = root.level, list(root.handlers), _variables()
    quiet = ray.LoggingConfig(log_level="ERROR")
    with ray_session(None, 2, {"KOE_OF_A_TEST": "1"}, logging_config=quiet):
        assert _variables()["KOE_OF_A_TEST"] == "1"
        yield before
    assert (root.level, list(root.handlers), _variables()) == before


@pytest.mark.slow
def test_the_root_logger_stays_as_it_was(session):
    root = logging.getLogger()
    assert (root.level, list(root.handlers)) == session[:2]


@pytest.mark.slow
def test_a_local_ray_listens_on_the_loopback_interface_alone():
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        def name(self) -> str:
            return "worker"

    workers = [Worker.remote() for _ in range(2)]
    assert ray.get([worker.name.remote() for worker in workers]) == ["worker"] * 2
    found = listeners()
    processes = {listener.process for listener in found}
    assert {"gcs_server", "raylet"} <= processes
    assert sum("Worker" in name for name in processes) == 1  # both have the same name
    assert len([listener for listener in found if "Worker" in listener.process]) == 2
    assert reachable_from_elsewhere(found) == []


def test_a_socket_on_every_interface_is_noticed():
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as opened:
                opened.bind((address, 0))
                if kind == socket.SOCK_STREAM:
                    opened.listen()
                port = opened.getsockname()[1]
                exposed = reachable_from_elsewhere(listeners())
                assert (address, port) in {(item.address, item.port) for item in exposed}
    assert not reachable_from_elsewhere([Listener("x", "::ffff:127.0.0.1", 1)])
    assert not reachable_from_elsewhere([Listener("x", "::1", 1), Listener("x", "127.0.0.9", 1)])


@pytest.mark.slow
def test_nothing_connects_to_ray_after_the_session():
    code = """
import ray
from koe.ray_session import ray_session
with ray_session(None, 1, {}, logging_level=40):
    one = ray.put(1)
try:
    ray.get(one)
except Exception as error:
    print(type(error).__name__)
print(ray.is_initialized())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False", run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 2
