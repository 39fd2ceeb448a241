"""Where the paths and URLs lead that records name: what a corpus says must not open any file at will."""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from urllib.parse import unquote

from koe.errors import BadRecord, ConfigError
from stages.sources.files.opening import is_remote, join, parent, plain
from stages.sources.settings import SpeechSourceConfig

OUTSIDE, OTHER_PROTOCOL = "outside_path", "other_protocol"
_SCHEME, _CHAIN, _UP = "://", "::", ".."


def resolve(settings: SpeechSourceConfig, listing: str, name: str) -> str:
    """Return the path or URL of the file that a record of the file `listing` calls `name`.

    A relative name starts from `audio_root`, or from the folder of `listing`. It must lead to a place
    below one of these, unless `allow_outside` is set. Links on the disk are followed: who can put a
    link there can put a file there.

    Raises: BadRecord with reason outside_path; other_protocol for a URL of another protocol than
    these folders have, and for URLs chained with `::`, whatever the settings are.
    """
    folder = parent(listing)
    root = settings.audio_root or folder
    path = join(root, name)
    _require_protocol(path, name, {_protocol(folder), _protocol(root)})
    is_plain = _SCHEME not in name and not name.startswith("/") and _UP not in name
    if is_plain or settings.allow_outside or any(_is_below(path, at) for at in (root, folder)):
        return path
    raise BadRecord(OUTSIDE, f"{name} does not lie below {root or '/'}")


def named_outside(source: str, location: str, bad: BadRecord) -> ConfigError:
    """Make the error for a source whose record at `location` names a place that it may not."""
    remedy = "Set audio_root of the source to the folder, or the URL, that holds its audio"
    if bad.reason == OUTSIDE:
        remedy += ", or allow_outside: true if its records may name any file"
    return ConfigError(
        f"source {source} may not read what {location} names", bad.detail, f"{remedy}."
    )


def _require_protocol(path: str, name: str, known: set[str]) -> None:
    if is_remote(path) and _CHAIN in name:
        raise BadRecord(OTHER_PROTOCOL, f"{name} is a chain of URLs, which a record may not name")
    if _protocol(path) not in known:
        places = " or ".join(
            sorted(f"{other}{_SCHEME}" if other else "the disk" for other in known)
        )
        raise BadRecord(
            OTHER_PROTOCOL, f"{name} is of another protocol than its source, which is on {places}"
        )
    if path.startswith("file://") and not plain(path).startswith("/"):
        raise BadRecord(OTHER_PROTOCOL, f"{name} names a host, and only files of this one are read")


def _protocol(path: str) -> str:
    """Return what stands before :// in a URL; empty for a file on the disk."""
    return path.partition(_SCHEME)[0] if is_remote(path) else ""


def _is_below(path: str, folder: str) -> bool:
    if _protocol(path) != _protocol(folder):
        return False
    if is_remote(path):
        # servers take %2e for a dot, and some clients too
        return _starts(*(_normal_url(unquote(url)) for url in (path, folder)))
    there, base = os.path.abspath(plain(path)), os.path.abspath(plain(folder or "/"))
    # x/.. is not where x lies if x is a link, so that only the disk can tell
    is_lexical = _UP not in plain(path).split("/")
    return (is_lexical and _starts(there, base)) or _starts(
        _real(plain(path)), os.path.realpath(base)
    )


def _normal_url(url: str) -> str:
    protocol, scheme, rest = url.partition(_SCHEME)
    return f"{protocol}{scheme}{posixpath.normpath(rest)}"


def _real(path: str) -> str:
    """Return where a path leads, its last part aside unless the path holds `..`."""
    folder, last = (path, "") if _UP in path.split("/") else os.path.split(os.path.abspath(path))
    with suppress(ValueError, OSError):
        return os.path.join(os.path.realpath(folder), last)
    return os.path.abspath(path)


def _starts(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
