"""An S3 server (moto) in a process of its own, which logs its requests and fails some on demand.

`python -m tests.s3_server` serves on a free port of the loopback address and prints the port.
Beside S3 it knows `GET /_koe/log`, `POST /_koe/clear` and `POST /_koe/faults` (see `S3Server`).
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CONTROL = "/_koe/"
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>injected</Message></Error>"


class _Watched:
    """A WSGI application around moto's: logs each request, and fails those that the faults name."""

    def __init__(self, application: Any) -> None:
        self._application, self._lock = application, threading.Lock()
        self._conditional = threading.Lock()
        self._log: list[tuple[str, str, str]] = []
        self._faults: dict[str, Any] = {}
        self._random = random.Random(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith(_CONTROL):
            return self._control(path.removeprefix(_CONTROL), environ, start_response)
        with self._lock:
            self._log.append((method, path, environ.get("QUERY_STRING", "")))
            fault = self._fault(method, path)
        if fault == "error":
            body = b"" if method == "HEAD" else _SLOW_DOWN
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", str(len(body)))])
            return [body]
        if fault == "reset":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("injected")
        if fault == "stall":
            time.sleep(float(self._faults.get("seconds", 3600)))
        if environ.keys() & {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}:
            with self._conditional:  # moto compares and writes in two steps
                return list(self._application(environ, start_response))
        return self._application(environ, start_response)

    def _fault(self, method: str, path: str) -> str:
        faults = self._faults
        if not faults or method not in faults.get("methods", [method]):
            return ""
        if faults.get("contains", "") not in path:
            return ""
        number = len(self._log)
        if number == faults.get("number"):  # one request, counted from the last clear
            return faults.get("kind", "error")
        return faults.get("kind", "error") if self._random.random() < faults.get("share", 0) else ""

    def _control(self, what: str, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            if what == "clear":
                self._log.clear()
            elif what == "faults":
                self._faults = json.loads(body)
                self._random = random.Random(self._faults.get("seed", 0))
            answer = json.dumps(self._log if what == "log" else None).encode()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]


class S3Server:
    """The server as a test sees it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            "FSSPEC_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def log(self) -> list[tuple[str, str, str]]:
        """List method, path and query of each request since the last `clear`."""
        return [tuple(entry) for entry in json.loads(self._ask("log"))]

    def counts(self) -> Counter[str]:
        """Count the requests since the last `clear` by method; LIST is a GET of a bucket."""
        return Counter(
            "LIST" if method == "GET" and "list-type" in query else method
            for method, _, query in self.log()
        )

    def clear(self) -> None:
        """Forget the requests so far."""
        self._ask("clear", b"")

    def fail(self, **faults: Any) -> None:
        """Fail requests from now on; without arguments, none.

        `share` of requests by chance (`seed`), or the one with this `number` since the last clear;
        only of these `methods`, only whose path `contains` a text. `kind`: error (503), reset
        (the connection is closed without an answer) or stall (no answer for `seconds`).
        """
        self._ask("faults", json.dumps(faults).encode())

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URL."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"

    def _ask(self, what: str, body: bytes | None = None) -> bytes:
        method = "GET" if body is None else "POST"
        request = urllib.request.Request(self.endpoint + _CONTROL + what, data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run the server, and let fsspec's s3 use it in this process and those it starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3_server"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        server = S3Server(int(process.stdout.readline()))
        before = {name: os.environ.get(name) for name in server.environment}
        os.environ.update(server.environment)
        set_fsspec_endpoint(server.endpoint)
        try:
            yield server
        finally:
            set_fsspec_endpoint(None)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    finally:
        process.kill()
        process.communicate()


def set_fsspec_endpoint(endpoint: str | None) -> None:
    """Do for this process what FSSPEC_S3_ENDPOINT_URL does for one that starts."""
    import fsspec
    from fsspec.config import conf

    conf.setdefault("s3", {}).pop("endpoint_url", None)
    if endpoint is not None:
        conf["s3"]["endpoint_url"] = endpoint
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: Any) -> None:
            pass

    application = _Watched(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
