"""Opens the fsspec file system of a URL, and says what is missing for one that cannot be opened.

A file system of the sources may keep the listings that it fetched, because planning asks for the size
of each file that it has just listed; `forget_listings` is called before a decision. That of a run
directory keeps none (`fresh_file_system`): workers on other machines write there.
"""

from __future__ import annotations

import errno
import tarfile
import zipfile
from typing import Any

from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.cached import CachingFileSystem

from koe.errors import ConfigError
from koe.store_errors import is_absent

# What file systems raise for a URL that lacks a part, as zip:// without an archive does, or whose
# archive is none; failing storage raises OSError, or an error of its own.
NO_PLACE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
_PACKAGES = {"smbclient": "smbprotocol"}  # where a module's package has another name
# Errors of a disk about a path that leads nowhere, as through a file or in a circle of links.
_NAMES_NOTHING = frozenset((errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
_S3 = ("s3", "s3a")
# A request to S3 that is not answered ends, and so do its repetitions: 5 by botocore (with growing
# pauses, of at most 20 s), and all of them twice by s3fs, which repeats broken answers too. A store
# that stands still is given up after about 5 minutes.
_S3_TRIES = 2
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "max_pool_connections": 64,
    "retries": {"mode": "standard", "total_max_attempts": 5},
}


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path in it.

    Raises: ConfigError where the protocol is unknown, or needs a package that is not installed.
    """
    try:
        system, place = url_to_fs(url, **_bounds(url), **options)
        if is_s3(system):
            system.retries = _S3_TRIES
            _send_bodies_at_once(system)
        return system, place
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name
        package = _PACKAGES.get(missing, missing) if missing else None
        raise ConfigError(
            f"{url} cannot be opened",
            f"a package is not installed: {error}",
            f"Install it: `pip install {package}`." if package else "Install it.",
        ) from error
    except NO_PLACE as error:
        raise no_place(url, error) from error


def _bounds(url: str) -> dict[str, Any]:
    """Return options that bound the time of a request; what fsspec's own configuration says wins."""
    protocol = url.partition("://")[0]
    if protocol not in _S3:
        return {}
    own = [conf.get(name, {}).get("config_kwargs", {}) for name in _S3]
    return {"config_kwargs": {**_S3_CONFIG, **own[1], **own[0]}}


def _send_bodies_at_once(system: Any) -> None:
    """Have s3fs send what it writes without asking first ("Expect: 100-continue").

    With aiohttp 3.14 some of the requests that ask first have no timeout: of 14 PUTs to a store that then stood
    still, 3 were waited for without end. Asking also costs a round trip for each file.
    """
    if system.session is not None:
        return
    from aiobotocore.session import AioSession  # there where s3fs is
    from botocore.handlers import add_expect_header

    system.session = AioSession(**system.kwargs)
    system.session.unregister("before-call.s3", add_expect_header)
    system._session_is_owned = False  # else s3fs makes another when it connects once more


def is_s3(system: Any) -> bool:
    """Tell whether a file system is s3fs."""
    protocol = system.protocol
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def fresh_file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return a file system that answers every question by asking the store, and the path in it.

    Raises: ConfigError as `file_system` does, and for a URL of a file system that keeps copies.
    """
    protocol = url.partition("://")[0]
    whole = {"max_concurrency": 1} if protocol in _S3 else {}  # else s3fs asks for the size first
    system, place = file_system(url, use_listings_cache=False, **whole, **options)
    if isinstance(system, CachingFileSystem):
        raise ConfigError(
            f"{url} cannot be a run directory",
            "it is read through a cache, which does not see what other processes write",
            "Name the place itself, without what stands before `::`.",
        )
    return system, place


def forget_listings(system: Any, place: str | None = None) -> None:
    """Have the next question about a path answered by the store; about any path where none is given."""
    system.invalidate_cache(place)


def is_there(system: Any, place: str) -> bool:
    """Tell whether there is a file or folder.

    Raises: what the file system raises where it cannot tell. Its own `exists` would say that there is
    none: that of a web server does when no server answers.
    """
    try:
        system.info(place)
    except OSError as error:
        if is_absent(error) or error.errno in _NAMES_NOTHING:
            return False
        raise
    return True


def abort_uploads(system: Any, place: str) -> int:
    """Abort the uploads that were begun below a path and never completed; return how many.

    S3 keeps the parts of such an upload, and charges for them, until they are deleted. Google's and
    Azure's stores delete them after a week.
    """
    if not is_s3(system):
        return 0
    bucket, prefix, _ = system.split_path(f"{place}/")
    question: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    found: list[dict[str, Any]] = []
    while True:
        answer = system.call_s3("list_multipart_uploads", **question)
        found += answer.get("Uploads", [])
        if not answer.get("IsTruncated"):
            break
        question["KeyMarker"] = answer["NextKeyMarker"]
        question["UploadIdMarker"] = answer["NextUploadIdMarker"]
    # asked of the store, which may not know of prefixes: nobody else's uploads are touched
    ours = [upload for upload in found if upload["Key"].startswith(prefix)]
    for upload in ours:
        system.abort_mpu(bucket, upload["Key"], upload["UploadId"])
    return len(ours)


def no_place(url: str, error: Exception) -> ConfigError:
    """Say that no file can have this URL, for which a file system raised `error`."""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ConfigError(
        f"{url} cannot be opened",
        f"{name}{error}",
        "Name a local path, or a URL of a protocol that fsspec knows, such as s3://bucket/folder.",
    )
