"""A file system in memory that answers from old listings, as those of object stores do in each process."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class StaleFileSystem(MemoryFileSystem):
    """Remembers every listing, and answers from it what a file is, unless it is told not to.

    What is written through it does not change what it remembers: another process may have written it.
    """

    protocol = "stale"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    answered: ClassVar[list[str]] = []  # the questions that were answered from memory

    def __init__(self, *arguments: Any, use_listings_cache: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._remembers = use_listings_cache
        self._listings: dict[str, list[dict[str, Any]]] = {}

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **options: Any) -> Any:
        place = self._strip_protocol(path)
        if refresh or place not in self._listings:
            found = super().ls(place, detail=True)
            if self._remembers:
                self._listings[place] = found
        else:
            self.answered.append(place)
            found = self._listings[place]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        place = self._strip_protocol(path)
        siblings = self._listings.get(self._parent(place))
        if siblings is None:
            return super().info(place)
        self.answered.append(place)
        for entry in siblings:
            if entry["name"] == place:
                return entry
        raise FileNotFoundError(path)

    def exists(self, path: str, **options: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def invalidate_cache(self, path: str | None = None) -> None:
        place = None if path is None else self._strip_protocol(path)
        for known in list(self._listings):
            if place is None or place == known or place.startswith(f"{known}/"):
                del self._listings[known]


def register_stale_files() -> type[StaleFileSystem]:
    """Let URLs that begin with `stale://` be opened by it; returns the class."""
    fsspec.register_implementation("stale", StaleFileSystem, clobber=True)
    return StaleFileSystem
