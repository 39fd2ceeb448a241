"""Which sockets the processes of a Ray session listen on, as Linux tells in /proc."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # states of a socket


class Listener(NamedTuple):
    process: str
    address: str
    port: int


def listeners() -> list[Listener]:
    """List what this process and all that it started accept connections or datagrams on."""
    found = []
    sockets = _listening_sockets()
    for pid in _family(os.getpid()):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # it ended since
            continue
        found += [Listener(name, *sockets[link]) for link in _open_files(pid) & sockets.keys()]
    return found


def _open_files(pid: int) -> set[str]:
    links = set()
    with suppress(OSError):  # the process ended since
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed since, as that of this very listing
                links.add(os.readlink(entry))
    return links


def reachable_from_elsewhere(found: list[Listener]) -> list[Listener]:
    """Return those that are not bound to a loopback address."""

    def is_loopback(text: str) -> bool:
        address = ipaddress.ip_address(text)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    return [listener for listener in found if not is_loopback(listener.address)]


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            numbers = children.read_text().split()
        except OSError:  # the thread or the process ended since
            continue
        for child in numbers:
            yield from _family(int(child))


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Return address and port of every listening socket, by the name that it has in /proc/*/fd."""
    found = {}
    for table, state in _LISTENING.items():
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                address, port = fields[1].split(":")
                found[f"socket:[{fields[9]}]"] = _address(address), int(port, 16)
    return found


def _address(written: str) -> str:
    """Read an address, which stands in hexadecimal as 32-bit words of the machine's byte order."""
    words = [written[start : start + 8] for start in range(0, len(written), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, "little") for word in words)
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)
